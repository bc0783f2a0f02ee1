"""Events that were decided in a transaction and are sent after it: at least once, and only hints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from alignflow.errors import RecipeError
from alignflow.ledger.schema import outbox, rows, sets
from alignflow.ledger.store import (
    insert_one,
    now,
    opened,
    preference_set,
    reading,
    update_one,
    writing,
)

READY = "alignflow.preferences.ready"
PROMOTED = "alignflow.champion.promoted"


class Event(NamedTuple):
    """An event that has not been sent."""

    key: int
    event: str
    payload: dict[str, Any]
    created: str


def is_waiting(set_key: int) -> Any:
    """The condition under which a row would go into the next snapshot."""
    return (
        (rows.c.preference_set == set_key)
        & rows.c.snapshot.is_(None)
        & rows.c.held_out.is_(False)
        & rows.c.left_out.is_(False)
        & rows.c.dropped.is_(None)
        & rows.c.erased.is_(None)
    )


def count_new(connection: Connection, set_key: int, at_most: int | None = None) -> int:
    """Waiting rows that no verdict was about."""
    judged = select(sets.c.judged).where(sets.c.key == set_key).scalar_subquery()
    waiting = select(rows.c.key).where(is_waiting(set_key), rows.c.key > judged)
    if at_most is not None:
        waiting = waiting.limit(at_most)
    return connection.execute(select(func.count()).select_from(waiting.subquery())).scalar_one()


def announce(connection: Connection, set_key: int) -> None:
    """Writes an event if the new rows have reached the set's threshold since the last verdict."""
    name, threshold, judged, announced = connection.execute(
        select(sets.c.name, sets.c.threshold, sets.c.judged, sets.c.announced).where(
            sets.c.key == set_key
        )
    ).one()
    if threshold is None or announced == judged:
        return
    if count_new(connection, set_key, threshold) < threshold:
        return
    write_event(connection, READY, {"set": name, "new": threshold, "judged": judged})
    update_one(connection, sets, set_key, announced=judged)


def write_event(connection: Connection, name: str, payload: dict[str, Any]) -> None:
    """Puts an event into the outbox, in the caller's transaction."""
    written = json.dumps(payload, sort_keys=True)
    insert_one(connection, outbox, event=name, payload=written, created=now())


def set_threshold(home: Path, name: str, new_pairs: int | None) -> None:
    """From how many new rows on a set calls for a retrain; None is never.

    Raises:
        RecipeError: The number is below 1.
    """
    if new_pairs is not None and new_pairs < 1:
        raise RecipeError(f"the threshold of {name} is {new_pairs}, wanted at least 1.")
    with opened(home) as engine:
        with reading(engine) as connection:
            known = select(sets.c.threshold).where(sets.c.name == name)
            stored = connection.execute(known).first()
        if stored is not None and stored.threshold == new_pairs:
            return
        with writing(engine) as connection:
            key = preference_set(connection, name)
            update_one(connection, sets, key, threshold=new_pairs)
            announce(connection, key)


def pending_events(home: Path) -> list[Event]:
    """Events that have not been sent, oldest first."""
    unsent = (
        select(outbox.c.key, outbox.c.event, outbox.c.payload, outbox.c.created)
        .where(outbox.c.sent.is_(None))
        .order_by(outbox.c.key)
    )
    with opened(home, create=False) as engine, reading(engine) as connection:
        return [
            Event(key, name, json.loads(payload), created)
            for key, name, payload, created in connection.execute(unsent)
        ]


def mark_sent(home: Path, key: int) -> None:
    """Records that an event was sent; what is not recorded is sent again."""
    with opened(home, create=False) as engine, writing(engine) as connection:
        update_one(connection, outbox, key, sent=now())
