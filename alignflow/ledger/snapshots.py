"""Snapshots: immutable, named sets of rows, and the Parquet files that training reads.

The ledger says which rows a snapshot has; its file can be written again from that at any time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, func, insert, literal, select, update
from sqlalchemy.sql import Select

from alignflow.errors import DataError
from alignflow.faults import faultpoint
from alignflow.files import sha256_file
from alignflow.ledger.holdout import current_holdout
from alignflow.ledger.outbox import is_waiting
from alignflow.ledger.schema import rows, snapshot_rows, snapshots, texts
from alignflow.ledger.snapshot_files import (
    WAITING,
    WRITTEN_ROWS,
    drop_old_waiting,
    snapshot_folder,
    write_parquet,
)
from alignflow.ledger.store import in_parts, now, opened, reading, require_set, writing

UNDECIDED = "undecided"
PROMOTED = "promoted"
DIGEST_CHARACTERS = 12


class Snapshot(NamedTuple):
    """A frozen set of rows."""

    name: str
    digest: str
    """sha256 of its rows' ids in order."""
    rows: int
    replayed: int
    """Those of them that an earlier generation was trained on."""
    state: str
    path: Path
    """Its Parquet file."""
    recipe: str | None
    champion: int | None
    """Generation of the champion when it was frozen."""
    created: str


def freeze(
    home: Path,
    name: str = "default",
    *,
    recipe: str | None = None,
    champion: int | None = None,
    replay: Callable[[int, int], int] | None = None,
) -> Snapshot:
    """Reserves the waiting rows under a name; an undecided snapshot is returned as it is.

    Args:
        home: Absolute home.
        name: The preference set.
        recipe: Kept with the snapshot, for whoever resumes it.
        champion: Generation that the candidate will contend with.
        replay: From the numbers of new and of consumed rows to how many consumed ones are mixed in.

    Raises:
        DataError: There is no such set, or nothing waits in it.
    """
    with opened(home, create=False) as engine:
        with writing(engine) as connection:
            key = require_set(connection, name)
            frozen = _undecided(connection, key)
            if frozen is None:
                frozen = _freeze(connection, key, name, recipe, champion, replay)
                faultpoint("ledger.freeze.commit")
        faultpoint("ledger.freeze.committed")
        return _with_file(engine, home, name, frozen)


def _undecided(connection: Connection, set_key: int) -> int | None:
    return connection.execute(
        select(snapshots.c.key).where(
            snapshots.c.preference_set == set_key, snapshots.c.state == UNDECIDED
        )
    ).scalar_one_or_none()


def _freeze(
    connection: Connection,
    set_key: int,
    name: str,
    recipe: str | None,
    champion: int | None,
    replay: Callable[[int, int], int] | None,
) -> int:
    """Writes the snapshot and reserves its rows, in the caller's transaction; returns its key."""
    waiting = is_waiting(set_key)
    new = connection.execute(select(func.count()).where(waiting)).scalar_one()
    if not new:
        raise DataError(
            f"ledger:{name}: no rows wait in the set {name!r}, so nothing was frozen. "
            "`alignflow prefs status` says where its rows are; add more with `alignflow prefs add`."
        )
    wanted = replay(new, _count_consumed(connection, set_key)) if replay else 0
    again = list(connection.execute(_consumed(set_key).limit(wanted)).scalars()) if wanted else []
    digest = _digest(connection, waiting, again)
    number = (
        1
        + connection.execute(
            select(func.coalesce(func.max(snapshots.c.number), 0)).where(
                snapshots.c.preference_set == set_key
            )
        ).scalar_one()
    )
    made = connection.execute(
        insert(snapshots).values(
            preference_set=set_key,
            name=f"v{number}-{digest[:DIGEST_CHARACTERS]}",
            number=number,
            digest=digest,
            last_row=connection.execute(select(func.max(rows.c.key))).scalar_one(),
            state=UNDECIDED,
            row_count=new + len(again),
            replayed=len(again),
            recipe=recipe,
            champion=champion,
            holdout=current_holdout(connection)[0],
            created=now(),
        )
    )
    assert made.inserted_primary_key is not None
    key = int(made.inserted_primary_key[0])
    connection.execute(
        insert(snapshot_rows).from_select(
            ["snapshot", "row", "replayed"],
            select(literal(key), rows.c.key, literal(False)).where(waiting),
        )
    )
    if again:
        connection.execute(
            insert(snapshot_rows),
            [{"snapshot": key, "row": row, "replayed": True} for row in again],
        )
    faultpoint("ledger.freeze.rows")
    connection.execute(update(rows).where(waiting).values(snapshot=key))
    return key


def _consumed(set_key: int) -> Select[tuple[int]]:
    """Rows that a generation was trained on, in an order that tells nothing: that of their ids."""
    return (
        select(rows.c.key)
        .join(snapshots, snapshots.c.key == rows.c.snapshot)
        .where(rows.c.preference_set == set_key, snapshots.c.state == PROMOTED)
        .where(rows.c.erased.is_(None), rows.c.left_out.is_(False), rows.c.dropped.is_(None))
        .order_by(rows.c.id)
    )


def _count_consumed(connection: Connection, set_key: int) -> int:
    return connection.execute(
        select(func.count()).select_from(_consumed(set_key).order_by(None).subquery())
    ).scalar_one()


def _digest(connection: Connection, condition: Any, again: Sequence[int] = ()) -> str:
    """sha256 of the ids in order."""
    ids = [bytes(name) for name in connection.execute(select(rows.c.id).where(condition)).scalars()]
    for part in in_parts(again):
        named = connection.execute(select(rows.c.id).where(rows.c.key.in_(part))).scalars()
        ids += [bytes(name) for name in named]
    digest = hashlib.sha256()
    for name in sorted(ids):
        digest.update(name)
    return digest.hexdigest()


def training_rows(home: Path, name: str, snapshot: str | None = None) -> Path:
    """Parquet file of a snapshot's rows, or of the rows that wait now.

    Args:
        home: Absolute home.
        name: The preference set.
        snapshot: Name of a snapshot; None for the waiting rows.

    Raises:
        DataError: There is no ledger, set or snapshot of that name, or nothing waits.
    """
    with opened(home, create=False) as engine:
        if snapshot is None:
            return _waiting_file(engine, home, name)
        return _with_file(engine, home, name, _find(engine, name, snapshot)).path


def _waiting_file(engine: Engine, home: Path, name: str) -> Path:
    with reading(engine) as connection:
        key = require_set(connection, name)
        digest = _digest(connection, is_waiting(key))
        if not connection.execute(select(func.count()).where(is_waiting(key))).scalar_one():
            raise DataError(
                f"ledger:{name}: no rows wait in the set {name!r}. Add some with `alignflow prefs add`, "
                f"or name a snapshot: ledger:{name}@SNAPSHOT (`alignflow prefs status` lists them)."
            )
        path = snapshot_folder(home, name) / f"{WAITING}{digest[:DIGEST_CHARACTERS]}.parquet"
        if path.exists():
            os.utime(path)  # in use
        else:
            chosen = (
                select(rows.c.id, texts.c.prompt, texts.c.chosen, texts.c.rejected, literal(False))
                .join(texts, texts.c.row == rows.c.key)
                .where(is_waiting(key))
                .order_by(rows.c.id)
            )
            write_parquet(
                path, connection.execution_options(yield_per=WRITTEN_ROWS).execute(chosen)
            )
            drop_old_waiting(path.parent)
        return path


def _find(engine: Engine, name: str, snapshot: str) -> int:
    with reading(engine) as connection:
        return find_snapshot(connection, require_set(connection, name), name, snapshot)


def find_snapshot(connection: Connection, set_key: int, name: str, snapshot: str) -> int:
    """Key of a snapshot.

    Raises:
        DataError: The set has none of that name.
    """
    known = dict(
        connection.execute(
            select(snapshots.c.name, snapshots.c.key)
            .where(snapshots.c.preference_set == set_key)
            .order_by(snapshots.c.number)
        )
        .tuples()
        .all()
    )
    if snapshot not in known:
        raise DataError(
            f"ledger:{name}@{snapshot}: the set {name!r} has no such snapshot (it has: "
            f"{', '.join(known) or 'none'}). Freeze one with `alignflow prefs freeze --from {name}`, "
            "or correct the name."
        )
    return known[snapshot]


def _with_file(engine: Engine, home: Path, name: str, key: int) -> Snapshot:
    """The snapshot, its file written if it is absent or not what the ledger knows."""
    with reading(engine) as connection:
        entry = connection.execute(select(snapshots).where(snapshots.c.key == key)).one()
        path = snapshot_folder(home, name) / f"{entry.name}.parquet"
        whole = path.exists() and entry.sha256 is not None and sha256_file(path) == entry.sha256
        if not whole:
            write_parquet(path, rows_of(connection, key))
    if not whole:
        sha256 = sha256_file(path)
        with writing(engine) as connection:
            connection.execute(
                update(snapshots).where(snapshots.c.key == key).values(sha256=sha256)
            )
    return Snapshot(
        entry.name,
        entry.digest,
        entry.row_count,
        entry.replayed,
        entry.state,
        path,
        entry.recipe,
        entry.champion,
        entry.created,
    )


def rows_of(connection: Connection, key: int) -> Iterator[Any]:
    """Id, prompt, chosen, rejected and replayed of a snapshot's rows by id; erased ones are gone."""
    chosen = (
        select(
            rows.c.id, texts.c.prompt, texts.c.chosen, texts.c.rejected, snapshot_rows.c.replayed
        )
        .join(snapshot_rows, snapshot_rows.c.row == rows.c.key)
        .join(texts, texts.c.row == rows.c.key)
        .where(snapshot_rows.c.snapshot == key, rows.c.erased.is_(None))
        .order_by(rows.c.id)
    )
    return iter(connection.execution_options(yield_per=WRITTEN_ROWS).execute(chosen))


def snapshot_names(connection: Connection, set_key: int) -> list[dict[str, Any]]:
    """Every snapshot of a set, oldest first."""
    entries = connection.execute(
        select(
            snapshots.c.name,
            snapshots.c.state,
            snapshots.c.row_count.label("rows"),
            snapshots.c.replayed,
            snapshots.c.digest,
            snapshots.c.created,
            snapshots.c.decided,
        )
        .where(snapshots.c.preference_set == set_key)
        .order_by(snapshots.c.number)
    )
    return [dict(entry) for entry in entries.mappings()]
