"""The hold-out as what candidates are judged on: its prompts, and the preferences of humans on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from alignflow.data.groups import HOLDOUT
from alignflow.files import digest_json
from alignflow.ledger.schema import rows, texts
from alignflow.ledger.snapshot_files import WRITTEN_ROWS, renamed, snapshot_folder
from alignflow.ledger.store import find_set, opened, reading


class HeldOutPair(NamedTuple):
    """A preference that is never trained on."""

    prompt: list[dict[str, str]]
    chosen: str
    rejected: str


def held_out_pairs(home: Path, name: str) -> list[HeldOutPair]:
    """Held-out preferences of a set, by id; contradictory ones say nothing and are left out."""
    with opened(home) as engine, reading(engine) as connection:
        return [
            HeldOutPair(json.loads(prompt), chosen, rejected)
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
        {"id": row_id.hex(), "prompt": json.loads(prompt), "target": chosen, "group": HOLDOUT}
        for prompt, (row_id, chosen) in first.items()
    ]
    digest = digest_json([entry["id"] for entry in entries])[:12]
    path = snapshot_folder(home, name) / f"held_out-{digest}.parquet"
    if not path.exists():
        with renamed(path) as temporary:  # the column `id` is for erasing, which looks for it
            pq.write_table(pa.Table.from_pylist(entries), temporary, compression="zstd")
    return path


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
