"""Which prompts are kept from training, decided once, when a prompt is first seen."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Connection, insert, select

from alignflow.data.forms import first_user_turn
from alignflow.errors import RecipeError
from alignflow.files import atomic_write_json, digest_json
from alignflow.ledger.schema import holdouts, prompts, ratings, rows, texts
from alignflow.ledger.store import insert_many, now, opened, reading, select_in, writing
from alignflow.settings import has_ledger

LARGEST = 2**64


def is_held_out(prompt_hash: bytes, salt: str, share: float) -> bool:
    """Whether a prompt falls into the share."""
    digest = hashlib.sha256(salt.encode() + prompt_hash).digest()
    return int.from_bytes(digest[:8], "big") < share * LARGEST


def decide(connection: Connection, hashes: Iterable[bytes]) -> dict[bytes, bool]:
    """What is so of each prompt; those not seen before are decided by the newest hold-out."""
    wanted = set(hashes)
    known = select_in(connection, "SELECT hash, held_out FROM prompts WHERE hash IN ({})", wanted)
    decided = {bytes(prompt): bool(held) for prompt, held in known}
    missing = wanted - decided.keys()
    if missing:
        key, salt, share = current_holdout(connection)
        new = {prompt: is_held_out(prompt, salt, share) for prompt in missing}
        insert_many(connection, prompts, [(prompt, held, key) for prompt, held in new.items()])
        decided.update(new)
    return decided


def current_holdout(connection: Connection) -> tuple[int, str, float]:
    """Key, salt and share of the hold-out in force."""
    newest = select(holdouts.c.key, holdouts.c.salt, holdouts.c.share).order_by(
        holdouts.c.key.desc()
    )
    return connection.execute(newest.limit(1)).one()._tuple()


def renew_holdout(home: Path, share: float, salt: str | None = None) -> None:
    """Decides by another share or salt from now on; prompts seen before stay where they are.

    Raises:
        RecipeError: The share is not from 0 to 0.5.
    """
    if not 0 <= share <= 0.5:
        raise RecipeError(f"holdout share is {share}, wanted 0 to 0.5.")
    with opened(home) as engine, writing(engine) as connection:
        connection.execute(
            insert(holdouts).values(salt=salt or secrets.token_hex(8), share=share, created=now())
        )


def held_out_prompts(home: Path) -> set[str]:
    """First user turns, normalised, that must not be trained on; none where there is no ledger."""
    if not has_ledger(home):
        return set()
    asked = (
        select(texts.c.prompt)
        .join(rows, rows.c.key == texts.c.row)
        .where(rows.c.held_out.is_(True))
        .distinct()
    )
    rated = (
        select(ratings.c.prompt)
        .join(prompts, prompts.c.hash == ratings.c.prompt_hash)
        .where(prompts.c.held_out.is_(True), ratings.c.prompt.is_not(None))
        .distinct()
    )
    with opened(home, create=False) as engine, reading(engine) as connection:
        asked_and_rated = [
            *connection.execute(asked).scalars(),
            *connection.execute(rated).scalars(),
        ]
    return {first_user_turn(json.loads(prompt)) for prompt in asked_and_rated if prompt is not None}


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
