"""What the ledger says to people: status, a row's whole life, quarantine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, case, func, select

from alignflow.errors import DataError
from alignflow.ledger.outbox import count_new
from alignflow.ledger.schema import (
    files,
    observations,
    promotions,
    quarantine,
    ratings,
    rows,
    sets,
    snapshot_rows,
    snapshots,
    texts,
)
from alignflow.ledger.snapshots import PROMOTED, UNDECIDED, snapshot_names
from alignflow.ledger.store import count, opened, reading, require_set, rows_in

RAW_CHARACTERS = 400
SHORTEST_PREFIX = 6
QUARANTINED = ("offset", "reason", "message", "sha256", "bytes", "raw")
"""What is shown of a line in quarantine, beside its set and file."""

_STATE = case(
    (rows.c.erased.is_not(None), "erased"),
    (snapshots.c.state == PROMOTED, "consumed"),
    (snapshots.c.state == UNDECIDED, "reserved"),
    (rows.c.held_out.is_(True), "held_out"),
    (rows.c.left_out.is_(True), "contradictory"),
    (rows.c.dropped.is_not(None), "dropped"),
    else_="waiting",
)
_STATED = rows.join(snapshots, snapshots.c.key == rows.c.snapshot, isouter=True)
STATES = ("waiting", "reserved", "consumed", "held_out", "contradictory", "dropped", "erased")


def status(home: Path, name: str | None = None) -> dict[str, Any]:
    """Counts of a set, or of all sets together. `rows` is the sum of the states but `erased`.

    Raises:
        DataError: There is no ledger, or no such set.
    """
    with opened(home, create=False) as engine, reading(engine) as connection:
        every = select(sets.c.name, sets.c.key).order_by(sets.c.key)
        keys = {entry.name: entry.key for entry in connection.execute(every)}
        named = [require_set(connection, name)] if name else list(keys.values())
        counts = _counts(connection, named)
        return {
            "rows": sum(counts.values()) - counts["erased"],
            **counts,
            "new": sum(count_new(connection, key) for key in named),
            "quarantined": count(connection, quarantine.c.preference_set.in_(named)),
            "unpaired": count(connection, ratings.c.preference_set.in_(named)),
            "snapshots": [entry for key in named for entry in snapshot_names(connection, key)],
            "champion": _champions(connection, named),
            "held_out_prompts": _held_out_prompts(connection, named),
            "sets": sorted(keys),
        }


def _counts(connection: Connection, named: list[int]) -> dict[str, int]:
    counted = (
        select(_STATE, func.count())
        .select_from(_STATED)
        .where(rows.c.preference_set.in_(named))
        .group_by(_STATE)
    )
    counts: Any = connection.execute(counted).all()
    return dict.fromkeys(STATES, 0) | dict(counts)


def _held_out_prompts(connection: Connection, named: list[int]) -> int:
    """Different prompts that are held out."""
    return connection.execute(
        select(func.count(texts.c.prompt.distinct()))
        .join(rows, rows.c.key == texts.c.row)
        .where(rows.c.preference_set.in_(named), rows.c.held_out.is_(True))
    ).scalar_one()


def _champions(connection: Connection, named: list[int]) -> dict[str, Any] | None:
    """The champion of the lineage that consumes these rows; of a lone model made by hand otherwise."""
    live: Any = connection.execute(
        select(promotions.c.model, func.max(promotions.c.generation))
        .where(promotions.c.undone.is_(None))
        .group_by(promotions.c.model)
    )
    heads: dict[str, int] = dict(live.all())
    owners = set(
        connection.execute(
            select(sets.c.model).where(sets.c.key.in_(named), sets.c.model.is_not(None))
        ).scalars()
    )
    mine = {model: generation for model, generation in heads.items() if model in (owners or heads)}
    if len(mine) != 1:
        return None
    model, generation = next(iter(mine.items()))
    entry = connection.execute(
        select(promotions).where(promotions.c.model == model, promotions.c.generation == generation)
    ).one()
    return {"model": model, "generation": generation, "digest": entry.digest}


def find_row(connection: Connection, id_or_prefix: str) -> Row[Any]:
    """A row by its id, or by a beginning of it that only it has.

    Raises:
        DataError: There is none, or several.
    """
    text = id_or_prefix.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}", text):
        raise DataError(
            f"{id_or_prefix!r} is no row id: wanted {SHORTEST_PREFIX} to 64 hexadecimal digits."
        )
    low, high = (bytes.fromhex(text.ljust(64, digit)) for digit in "0f")
    matching = connection.execute(select(rows).where(rows.c.id.between(low, high)).limit(3)).all()
    if len({bytes(entry.id) for entry in matching}) != 1:
        many = "more than one row" if matching else "no row"
        raise DataError(
            f"{many} in the ledger has an id that begins with {text}. Give more digits, or check it."
        )
    return matching[0]


def show(home: Path, id_or_prefix: str) -> dict[str, Any]:
    """A row's whole life.

    Raises:
        DataError: There is no such row.
    """
    with opened(home, create=False) as engine, reading(engine) as connection:
        row = find_row(connection, id_or_prefix)
        text = connection.execute(select(texts).where(texts.c.row == row.key)).first()
        placed = (
            select(sets.c.name, _STATE)
            .select_from(_STATED.join(sets, sets.c.key == rows.c.preference_set))
            .where(rows.c.key == row.key)
        )
        set_name, state = connection.execute(placed).one()
        return {
            "id": bytes(row.id).hex(),
            "set": set_name,
            "state": state,
            "held_out": row.held_out,
            "contradicted_by": _id_of(connection, row.opposite),
            "dropped": row.dropped,
            "erased": row.erased,
            "prompt": text.prompt if text else None,
            "chosen": text.chosen if text else None,
            "rejected": text.rejected if text else None,
            "seen": _seen(connection, row.key),
            "snapshots": _snapshots_of(connection, row.key),
            "models": models_of(connection, [row.key]),
        }


def _id_of(connection: Connection, key: int | None) -> str | None:
    if key is None:
        return None
    opposite = connection.execute(select(rows.c.id).where(rows.c.key == key)).scalar_one()
    return bytes(opposite).hex()


def _seen(connection: Connection, key: int) -> list[dict[str, Any]]:
    entries = connection.execute(
        select(
            files.c.label.label("file"),
            observations.c.offset,
            files.c.created.label("taken_in"),
            observations.c.annotator,
            observations.c.time,
            observations.c.source,
            observations.c.model,
        )
        .join(files, files.c.key == observations.c.file)
        .where(observations.c.row == key)
        .order_by(observations.c.file, observations.c.offset)
    )
    return [dict(entry) for entry in entries.mappings()]


def _snapshots_of(connection: Connection, key: int) -> list[dict[str, Any]]:
    entries = connection.execute(
        select(snapshots.c.name, snapshots.c.state, snapshot_rows.c.replayed)
        .join(snapshot_rows, snapshot_rows.c.snapshot == snapshots.c.key)
        .where(snapshot_rows.c.row == key)
        .order_by(snapshots.c.number)
    )
    return [dict(entry) for entry in entries.mappings()]


def models_of(connection: Connection, keys: list[int]) -> list[dict[str, Any]]:
    """Generations that were trained on any of these rows, undone ones too."""
    trained = (
        select(
            promotions.c.model,
            promotions.c.generation,
            promotions.c.digest,
            promotions.c.undone,
            snapshots.c.name.label("snapshot"),
        )
        .join(snapshots, snapshots.c.key == promotions.c.snapshot)
        .join(snapshot_rows, snapshot_rows.c.snapshot == snapshots.c.key)
        .distinct()
    )
    entries = rows_in(connection, trained, snapshot_rows.c.row, keys)
    models = {(entry.model, entry.generation): entry._asdict() for entry in entries}
    return [models[name] for name in sorted(models)]


def quarantined(home: Path, name: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """What was refused, newest files first: reason, place, hash, and the beginning of its bytes."""
    wanted = (
        select(
            sets.c.name.label("set"),
            files.c.label.label("file"),
            *(quarantine.c[name] for name in QUARANTINED),
        )
        .select_from(quarantine)
        .join(files, files.c.key == quarantine.c.file)
        .join(sets, sets.c.key == quarantine.c.preference_set)
        .order_by(quarantine.c.file.desc(), quarantine.c.offset)
        .limit(limit)
    )
    with opened(home, create=False) as engine, reading(engine) as connection:
        if name:
            wanted = wanted.where(quarantine.c.preference_set == require_set(connection, name))
        return [
            {**entry, "raw": printable(bytes(entry["raw"])[:RAW_CHARACTERS])}
            for entry in connection.execute(wanted).mappings()
        ]


def printable(raw: bytes) -> str:
    """Text of untrusted bytes in which nothing controls a terminal."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
