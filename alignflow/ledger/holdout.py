"""Which prompts are kept from training, decided once, when a prompt is first seen.

Candidates are judged on them, and on the preferences of humans on them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from alignflow.data import HOLDOUT, answer_text, falls_into, prompt_of, response_of
from alignflow.errors import RecipeError
from alignflow.files import atomic_write_json, digest_json
from alignflow.ledger.schema import holdouts, prompts, rows, texts
from alignflow.ledger.snapshot_files import WRITTEN_ROWS, renamed, snapshot_folder
from alignflow.ledger.store import (
    find_set,
    insert_many,
    insert_one,
    now,
    opened,
    reading,
    select_in,
    writing,
)
from alignflow.settings import has_ledger


def decide(connection: Connection, hashes: Iterable[bytes]) -> dict[bytes, bool]:
    """What is so of each prompt; those not seen before are decided by the newest hold-out."""
    wanted = set(hashes)
    known = select_in(connection, "SELECT hash, held_out FROM prompts WHERE hash IN ({})", wanted)
    decided = {bytes(prompt): bool(held) for prompt, held in known}
    missing = wanted - decided.keys()
    if missing:
        key, salt, share = current_holdout(connection)
        new = {prompt: falls_into(share, salt.encode() + prompt) for prompt in missing}
        insert_many(connection, prompts, [(prompt, held, key) for prompt, held in new.items()])
        decided.update(new)
    return decided


def current_holdout(connection: Connection) -> tuple[int, str, float]:
    """Key, salt and share of the hold-out in force."""
    newest = select(holdouts).order_by(holdouts.c.key.desc()).limit(1)
    entry = connection.execute(newest).one()
    return entry.key, entry.salt, entry.share


def renew_holdout(home: Path, share: float, salt: str | None = None) -> None:
    """Decides by another share or salt from now on; prompts seen before stay where they are.

    Raises:
        RecipeError: The share is not from 0 to 0.5.
    """
    if not 0 <= share <= 0.5:
        raise RecipeError(f"holdout share is {share}, wanted 0 to 0.5.")
    with opened(home) as engine, writing(engine) as connection:
        salt = salt or secrets.token_hex(8)
        insert_one(connection, holdouts, salt=salt, share=share, created=now())


def held_out_hashes(home: Path) -> list[str]:
    """sha256 of every held-out first user turn; none where there is no ledger."""
    if not has_ledger(home):
        return []
    chosen = select(prompts.c.hash).where(prompts.c.held_out.is_(True)).order_by(prompts.c.hash)
    with opened(home, create=False) as engine, reading(engine) as connection:
        return [bytes(entry).hex() for entry in connection.execute(chosen).scalars()]


def held_out_file(home: Path) -> Path | None:
    """A file with `held_out_hashes`, for `prepare`; it holds no text. None where there are none.

    Its name has the digest of its content.
    """
    hashes = held_out_hashes(home)
    if not hashes:
        return None
    path = home / "snapshots" / f"held_out-{digest_json(hashes)[:12]}.json"
    if not path.exists():
        atomic_write_json(path, hashes)
    return path


class HeldOutPair(NamedTuple):
    """A preference that is never trained on."""

    prompt: list[dict[str, Any]]
    chosen: str
    rejected: str


def held_out_pairs(home: Path, name: str) -> list[HeldOutPair]:
    """Held-out preferences of a set, by id; contradictory ones say nothing and are left out."""
    with opened(home) as engine, reading(engine) as connection:
        return [
            HeldOutPair(prompt_of(prompt)[0], *map(_answer, (chosen, rejected)))
            for _, prompt, chosen, rejected in _held_out(connection, name)
        ]


def holdout_prompts_file(home: Path, name: str) -> Path | None:
    """A file of the set's held-out prompts, for an evaluation; None where there are none.

    Its name has the digest of its rows, so an evaluation of equal prompts is the same evaluation.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(home) as engine, reading(engine) as connection:
        first: dict[str, tuple[bytes, str]] = {}
        for row_id, prompt, chosen, _ in _held_out(connection, name):
            first.setdefault(prompt, (bytes(row_id), chosen))
    if not first:
        return None
    entries: list[dict[str, Any]] = [
        {"id": row_id.hex(), **_asked(prompt), "target": _answer(chosen), "group": HOLDOUT}
        for prompt, (row_id, chosen) in first.items()
    ]
    if any(isinstance(entry["prompt"], str) for entry in entries):
        entries = [
            {**entry, "prompt": _as_json(entry["prompt"]), "tools": entry.get("tools")}
            for entry in entries
        ]
    digest = digest_json([entry["id"] for entry in entries])[:12]
    path = snapshot_folder(home, name) / f"held_out-{digest}.parquet"
    if not path.exists():
        with renamed(path) as temporary:  # the column `id` is for erasing, which looks for it
            pq.write_table(pa.Table.from_pylist(entries), temporary, compression="zstd")
    return path


def _answer(text: str) -> str:
    return answer_text(response_of(text))


def _asked(text: str) -> dict[str, Any]:
    """Columns of a prompt: messages, or the text of their JSON where they are more than text."""
    messages, tools = prompt_of(text)
    if tools is None and all({*turn} == {"role", "content"} for turn in messages):
        return {"prompt": messages}
    told = {"prompt": _as_json(messages)}
    return told if tools is None else {**told, "tools": _as_json(tools)}


def _as_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _held_out(connection: Connection, name: str) -> list[Any]:
    key = find_set(connection, name)
    chosen = (
        select(rows.c.id, texts.c.prompt, texts.c.chosen, texts.c.rejected)
        .join(texts, texts.c.row == rows.c.key)
        .where(rows.c.preference_set == key, rows.c.held_out.is_(True))
        .where(rows.c.left_out.is_(False))
        .order_by(rows.c.id)
    )
    return list(connection.execution_options(yield_per=WRITTEN_ROWS).execute(chosen))
