"""Verdicts on snapshots: promotion consumes their rows, reject and inconclusive give them back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, func, select, update

from alignflow.errors import DataError
from alignflow.faults import faultpoint
from alignflow.ledger.outbox import announce
from alignflow.ledger.schema import rows, sets, snapshot_rows, snapshots
from alignflow.ledger.snapshots import PROMOTED, UNDECIDED, find_snapshot
from alignflow.ledger.store import now, opened, require_set, update_one, writing

ROLLED_BACK = "rolled_back"
WITHDRAWN = "withdrawn"
Release = Literal["rejected", "inconclusive"]


def consume(connection: Connection, name: str, snapshot: str, model: str) -> int:
    """Marks a snapshot promoted in a model's lineage; its key. In the caller's transaction.

    Raises:
        DataError: See `promote`.
    """
    set_key = require_set(connection, name)
    owner = connection.execute(select(sets.c.model).where(sets.c.key == set_key)).scalar_one()
    if owner not in (None, model):
        raise DataError(
            f"The set {name!r} belongs to the lineage of {owner}, so {model} cannot consume its rows: "
            "each row counts once, in one lineage. Give the rows to a set of its own "
            "(`alignflow prefs add FILE --into OTHER`)."
        )
    update_one(connection, sets, set_key, model=model)
    _take_back(connection, set_key, name, snapshot)
    return _decide(connection, set_key, name, snapshot, PROMOTED, None)


def _take_back(connection: Connection, set_key: int, name: str, snapshot: str) -> None:
    """Reserves the rows of a snapshot that a verdict had given back, for a promotion by hand."""
    key = find_snapshot(connection, set_key, name, snapshot)
    state = connection.execute(select(snapshots.c.state).where(snapshots.c.key == key)).scalar_one()
    if state in (PROMOTED, UNDECIDED):
        return
    own = select(snapshot_rows.c.row).where(
        snapshot_rows.c.snapshot == key, snapshot_rows.c.replayed.is_(False)
    )
    moved = connection.execute(
        select(snapshots.c.name, func.count())
        .join(rows, rows.c.snapshot == snapshots.c.key)
        .where(rows.c.key.in_(own))
        .group_by(snapshots.c.name)
    ).first()
    if moved is not None:
        other, count = moved
        raise DataError(
            f"{count} rows of ledger:{name}@{snapshot} are in {other} now; promoting its model would "
            f"count them twice. Nothing was changed. Wait for the verdict on {other}."
        )
    connection.execute(update(rows).where(rows.c.key.in_(own)).values(snapshot=key))
    update_one(connection, snapshots, key, state=UNDECIDED)


def _decide(
    connection: Connection, set_key: int, name: str, snapshot: str, state: str, verdict: str | None
) -> int:
    """Gives a snapshot its verdict; unless withdrawn, only newer rows then count to the trigger."""
    key = find_snapshot(connection, set_key, name, snapshot)
    entry = connection.execute(select(snapshots).where(snapshots.c.key == key)).one()
    if entry.state != UNDECIDED:
        raise DataError(
            f"ledger:{name}@{snapshot} is {entry.state} since {entry.decided}, so it cannot be "
            f"{state} now. Nothing was changed."
        )
    update_one(connection, snapshots, key, state=state, verdict=verdict, decided=now())
    if state != WITHDRAWN:
        older = update(sets).where(sets.c.key == set_key, sets.c.judged < entry.last_row)
        connection.execute(older.values(judged=entry.last_row))
    if state != PROMOTED:
        connection.execute(update(rows).where(rows.c.snapshot == key).values(snapshot=None))
    announce(connection, set_key)
    return key


def release(
    home: Path, snapshot: str, verdict: Release, *, name: str = "default", reason: str = ""
) -> None:
    """Gives a snapshot's rows back: they join the next one, but do not call for it.

    Raises:
        DataError: The snapshot is not there, or has its verdict already.
    """
    with opened(home, create=False) as engine:
        with writing(engine) as connection:
            _decide(connection, require_set(connection, name), name, snapshot, verdict, reason)
            faultpoint("ledger.release.commit")
        faultpoint("ledger.release.committed")


def withdraw(home: Path, snapshot: str, reason: str, *, name: str = "default") -> None:
    """Gives an undecided snapshot's rows back as if it had never been frozen: they stay new.

    For a person whose recipe cannot finish; a retrain never does it.

    Raises:
        DataError: The snapshot is not there, or has its verdict already.
    """
    with opened(home, create=False) as engine, writing(engine) as connection:
        _decide(connection, require_set(connection, name), name, snapshot, WITHDRAWN, reason)


def give_back(connection: Connection, snapshot: int | None) -> None:
    """Gives back the rows of a generation that is undone, in the caller's transaction."""
    if snapshot is not None:
        connection.execute(update(rows).where(rows.c.snapshot == snapshot).values(snapshot=None))
        update_one(connection, snapshots, snapshot, state=ROLLED_BACK)
