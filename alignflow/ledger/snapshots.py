"""Snapshots: immutable, named sets of rows, and the Parquet files that training reads.

The ledger says which rows a snapshot has; its file can be written again from that at any time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Select, func, insert, literal, select, update

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
from alignflow.ledger.store import (
    count,
    insert_one,
    now,
    opened,
    reading,
    require_set,
    rows_in,
    update_one,
    writing,
)

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
    """Reserves the waiting rows of a set under a name; an undecided snapshot is returned as it is.

    `recipe` and `champion`, the generation to contend with, are kept with it. `replay` says from the
    numbers of new and of consumed rows how many consumed ones are mixed in.

    Raises:
        DataError: There is no such set, or nothing waits in it.
    """
    with opened(home, create=False) as engine:
        with writing(engine) as connection:
            key = require_set(connection, name)
            undecided = select(snapshots.c.key).where(
                snapshots.c.preference_set == key, snapshots.c.state == UNDECIDED
            )
            frozen = connection.execute(undecided).scalar_one_or_none()
            if frozen is None:
                frozen = _freeze(connection, key, name, recipe, champion, replay)
                faultpoint("ledger.freeze.commit")
        faultpoint("ledger.freeze.committed")
        return _with_file(engine, home, name, frozen)


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
    new = count(connection, waiting)
    if not new:
        raise DataError(
            f"ledger:{name}: no rows wait in the set {name!r}, so nothing was frozen. "
            "`alignflow prefs status` says where its rows are; add more with `alignflow prefs add`."
        )
    consumed = select(func.count()).select_from(_consumed(set_key).order_by(None).subquery())
    wanted = replay(new, connection.execute(consumed).scalar_one()) if replay else 0
    spent: Any = _consumed(set_key).limit(wanted)
    again = list(connection.execute(spent).scalars()) if wanted else []
    digest = _digest(connection, waiting, again)
    numbers = select(func.coalesce(func.max(snapshots.c.number), 0))
    newest = connection.execute(numbers.where(snapshots.c.preference_set == set_key)).scalar_one()
    number = newest + 1
    key = insert_one(
        connection,
        snapshots,
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


def _digest(connection: Connection, condition: Any, again: Sequence[int] = ()) -> str:
    """sha256 of the ids in order."""
    ids = [bytes(name) for name in connection.execute(select(rows.c.id).where(condition)).scalars()]
    ids += [bytes(name) for (name,) in rows_in(connection, select(rows.c.id), rows.c.key, again)]
    return hashlib.sha256(b"".join(sorted(ids))).hexdigest()


def training_rows(home: Path, name: str, snapshot: str | None = None) -> Path:
    """Parquet file of a snapshot's rows, or without its name of the rows of the set that wait now.

    Raises:
        DataError: There is no ledger, set or snapshot of that name, or nothing waits.
    """
    with opened(home, create=False) as engine:
        if snapshot is None:
            return _waiting_file(engine, home, name)
        with reading(engine) as connection:
            key = find_snapshot(connection, require_set(connection, name), name, snapshot)
        return _with_file(engine, home, name, key).path


def _waiting_file(engine: Engine, home: Path, name: str) -> Path:
    with reading(engine) as connection:
        key = require_set(connection, name)
        digest = _digest(connection, is_waiting(key))
        if not count(connection, is_waiting(key)):
            raise DataError(
                f"ledger:{name}: no rows wait in the set {name!r}. Add some with `alignflow prefs add`, "
                f"or name a snapshot: ledger:{name}@SNAPSHOT (`alignflow prefs status` lists them)."
            )
        path = snapshot_folder(home, name) / f"{WAITING}{digest[:DIGEST_CHARACTERS]}.parquet"
        try:
            os.utime(path)  # in use
        except FileNotFoundError:
            chosen = (
                select(rows.c.id, texts.c.prompt, texts.c.chosen, texts.c.rejected, literal(False))
                .join(texts, texts.c.row == rows.c.key)
                .where(is_waiting(key))
                .order_by(rows.c.id)
            )
            streamed = connection.execution_options(yield_per=WRITTEN_ROWS)
            write_parquet(path, lambda: streamed.execute(chosen))
            drop_old_waiting(path.parent)
        return path


def find_snapshot(connection: Connection, set_key: int, name: str, snapshot: str) -> int:
    """Key of a snapshot.

    Raises:
        DataError: The set has none of that name.
    """
    named = (
        select(snapshots.c.name, snapshots.c.key)
        .where(snapshots.c.preference_set == set_key)
        .order_by(snapshots.c.number)
    )
    known: dict[str, int] = {entry.name: entry.key for entry in connection.execute(named)}
    if snapshot not in known:
        raise DataError(
            f"ledger:{name}@{snapshot}: the set {name!r} has no such snapshot (it has: "
            f"{', '.join(known) or 'none'}). Freeze one with `alignflow prefs freeze --from {name}`, "
            "or correct the name."
        )
    return known[snapshot]


def _digest_of(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        return None


def _with_file(engine: Engine, home: Path, name: str, key: int) -> Snapshot:
    """The snapshot, its file written if it is absent or not what the ledger knows."""
    with reading(engine) as connection:
        entry = connection.execute(select(snapshots).where(snapshots.c.key == key)).one()
        path = snapshot_folder(home, name) / f"{entry.name}.parquet"
        whole = entry.sha256 is not None and _digest_of(path) == entry.sha256
        if not whole:
            write_parquet(path, lambda: rows_of(connection, key))
    if not whole:
        sha256 = sha256_file(path)
        with writing(engine) as connection:
            update_one(connection, snapshots, key, sha256=sha256)
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
