"""What happened in the ledger since it was last looked at, a line each, for a person who watches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from alignflow.ledger.schema import files, promotions, sets, snapshots
from alignflow.ledger.snapshots import PROMOTED, UNDECIDED
from alignflow.ledger.store import opened, reading
from alignflow.settings import has_ledger

VERDICT = 160
"""Characters of a verdict's reason that are shown."""


class Seen(NamedTuple):
    """What a watcher has been told: the newest file and snapshot, and every verdict."""

    file: int = 0
    snapshot: int = 0
    verdicts: frozenset[tuple[int, str]] = frozenset()


def seen_now(home: Path) -> Seen:
    """From now on only what is new."""
    if not has_ledger(home):
        return Seen()
    with opened(home, create=False) as engine, reading(engine) as connection:
        newest = select(
            select(func.max(files.c.key)).where(files.c.done.is_(True)).scalar_subquery(),
            select(func.max(snapshots.c.key)).scalar_subquery(),
        )
        file, snapshot = connection.execute(newest).one()
        verdicts = frozenset(verdict for verdict, _ in _verdicts(connection, frozenset()))
        return Seen(file or 0, snapshot or 0, verdicts)


def news(home: Path, seen: Seen) -> tuple[list[str], Seen]:
    """Lines on what is newer than `seen`: taken in, started, promoted or rejected and why."""
    if not has_ledger(home):
        return [], seen
    with opened(home, create=False) as engine, reading(engine) as connection:
        taken = list(_taken_in(connection, seen.file))
        began = list(_started(connection, seen.snapshot))
        ended = list(_verdicts(connection, seen.verdicts))
    newest = Seen(
        taken[-1][0] if taken else seen.file,
        began[-1][0] if began else seen.snapshot,
        seen.verdicts.union(verdict for verdict, _ in ended),
    )
    return [line for _, line in (*taken, *began, *ended)], newest


def _taken_in(connection: Connection, after: int) -> Iterator[tuple[int, str]]:
    wanted = select(files).where(files.c.key > after, files.c.done.is_(True)).order_by(files.c.key)
    for entry in connection.execute(wanted):
        counts = [f"{entry.accepted} new rows"]
        counts += [f"{entry.duplicates} known"] if entry.duplicates else []
        counts += [f"{entry.quarantined} in quarantine"] if entry.quarantined else []
        yield entry.key, f"taken in  {Path(entry.label).name}: {', '.join(counts)}"


def _started(connection: Connection, after: int) -> Iterator[tuple[int, str]]:
    for entry in connection.execute(_snapshots().where(snapshots.c.key > after)):
        rows = f"{entry.row_count} rows" + (f", {entry.replayed} again" if entry.replayed else "")
        against = "" if entry.champion is None else f", against generation {entry.champion}"
        yield entry.key, f"started   retrain on {entry.set}@{entry.name}: {rows}{against}"


def _verdicts(
    connection: Connection, known: frozenset[tuple[int, str]]
) -> Iterator[tuple[tuple[int, str], str]]:
    for entry in connection.execute(_snapshots().where(snapshots.c.state != UNDECIDED)):
        if (entry.key, entry.state) in known:
            continue
        made = select(promotions).where(promotions.c.snapshot == entry.key)
        new: Any = connection.execute(made.order_by(promotions.c.generation.desc())).first()
        if entry.state == PROMOTED and new is not None:
            about, why = f"{new.model} generation {new.generation}", new.reason
        else:
            about, why = f"the candidate of {entry.set}@{entry.name}", entry.verdict
        yield (entry.key, entry.state), f"{entry.state:<9} {about}: {_in_words(why)[:VERDICT]}"


def _in_words(why: str | None) -> str:
    """A verdict's reason in one line; a retrain keeps the gate's whole record there, as JSON."""
    said = why or "no reason given"
    with suppress(ValueError, TypeError, KeyError):  # words of a person's are no record
        said = "; ".join(json.loads(said)["reasons"])
    return " ".join(said.split())


def _snapshots() -> Any:
    named = sets.c.name.label("set")
    joined = select(snapshots, named).join(sets, sets.c.key == snapshots.c.preference_set)
    return joined.order_by(snapshots.c.key)
