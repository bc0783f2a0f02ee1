"""Verdicts: promotion consumes a snapshot's rows, reject and inconclusive give them back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, func, insert, select, update

from alignflow.errors import AlignflowError, DataError, RecipeError
from alignflow.faults import faultpoint
from alignflow.ledger.holdout import current_holdout
from alignflow.ledger.outbox import PROMOTED as PROMOTED_EVENT
from alignflow.ledger.outbox import announce, count_new, is_waiting, write_event
from alignflow.ledger.schema import promotions, rows, sets, snapshots
from alignflow.ledger.snapshots import PROMOTED, UNDECIDED, find_snapshot
from alignflow.ledger.store import (
    find_set,
    now,
    opened,
    preference_set,
    reading,
    require_set,
    writing,
)

ROLLED_BACK = "rolled_back"
Release = Literal["rejected", "inconclusive"]


class PromotionRace(AlignflowError):
    """Another candidate was promoted first; this one is to be gated against the new champion."""


class Generation(NamedTuple):
    """A promoted model of a name."""

    model: str
    generation: int
    digest: str
    artifacts: dict[str, str]
    snapshot: str | None
    reason: str
    created: str


class SetState(NamedTuple):
    """What a retrain asks of a set and a model, all of one moment."""

    waiting: int
    new: int
    """Waiting rows that no verdict was about."""
    undecided: str | None
    recipe: str | None
    """Kept with the undecided snapshot."""
    expected: int | None
    """Champion's generation when the undecided snapshot was frozen."""
    champion: Generation | None
    looks: int
    """Verdicts given on the present hold-out."""


def champion(home: Path, model: str) -> Generation | None:
    """The head of a model's lineage."""
    with opened(home, create=False) as engine, reading(engine) as connection:
        return _head(connection, model)


def set_state(home: Path, name: str, model: str) -> SetState:
    """What the ledger says of a set and a model; an unknown set is an empty one."""
    with opened(home) as engine, reading(engine) as connection:
        head, key = _head(connection, model), find_set(connection, name)
        if key is None:
            return SetState(0, 0, None, None, None, head, 0)
        undecided = connection.execute(
            select(snapshots.c.name, snapshots.c.recipe, snapshots.c.champion).where(
                snapshots.c.preference_set == key, snapshots.c.state == UNDECIDED
            )
        ).first()
        looks = connection.execute(
            select(func.count()).where(
                snapshots.c.preference_set == key,
                snapshots.c.state != UNDECIDED,
                snapshots.c.holdout == current_holdout(connection)[0],
            )
        ).scalar_one()
        waiting = connection.execute(select(func.count()).where(is_waiting(key))).scalar_one()
        return SetState(
            waiting,
            count_new(connection, key),
            *(undecided or (None, None, None)),
            champion=head,
            looks=looks,
        )


def promote(
    home: Path,
    model: str,
    *,
    expected: int | None,
    digest: str,
    artifacts: Mapping[str, str],
    reason: str,
    name: str = "default",
    snapshot: str | None = None,
) -> Generation:
    """Makes a candidate the champion and consumes its snapshot's rows, both or neither.

    Args:
        home: Absolute home.
        model: Registered name.
        expected: Generation that the candidate was gated against; None where there was none.
        digest: Of the candidate's merged model.
        artifacts: Stage to artifact directory of what made it.
        reason: Why, for people.
        name: The preference set of the snapshot.
        snapshot: Undecided snapshot it was trained on; None for a model made by hand.

    Raises:
        PromotionRace: The champion is no longer the expected one. Nothing was changed.
        DataError: The snapshot is not there or has its verdict already, or the set belongs to
            another model.
    """
    with opened(home) as engine, writing(engine) as connection:
        head = _head(connection, model)
        found = head.generation if head else None
        if found != expected:
            raise PromotionRace(
                f"The champion of {model} is generation {found}, the candidate was gated against "
                f"generation {expected}: nothing was promoted. Gate it against generation {found}."
            )
        newest = connection.execute(
            select(func.coalesce(func.max(promotions.c.generation), -1)).where(
                promotions.c.model == model
            )
        ).scalar_one()
        key = _consume(connection, name, snapshot, model) if snapshot else None
        faultpoint("ledger.promote.rows")
        connection.execute(
            insert(promotions).values(
                model=model,
                generation=newest + 1,
                digest=digest,
                artifacts=json.dumps(dict(artifacts), sort_keys=True),
                snapshot=key,
                reason=reason,
                created=now(),
            )
        )
        write_event(
            connection,
            PROMOTED_EVENT,
            {"model": model, "generation": newest + 1, "digest": digest, "snapshot": snapshot},
        )
        promoted = _head(connection, model)
        assert promoted is not None
        faultpoint("ledger.promote.commit")
    faultpoint("ledger.promote.committed")
    return promoted


def _consume(connection: Connection, name: str, snapshot: str, model: str) -> int:
    set_key = require_set(connection, name)
    owner = connection.execute(select(sets.c.model).where(sets.c.key == set_key)).scalar_one()
    if owner not in (None, model):
        raise DataError(
            f"The set {name!r} belongs to the lineage of {owner}, so {model} cannot consume its rows: "
            "each row counts once, in one lineage. Give the rows to a set of its own "
            "(`alignflow prefs add FILE --into OTHER`)."
        )
    connection.execute(update(sets).where(sets.c.key == set_key).values(model=model))
    return _decide(connection, set_key, name, snapshot, PROMOTED, None)


def _decide(
    connection: Connection, set_key: int, name: str, snapshot: str, state: str, verdict: str | None
) -> int:
    """Gives a snapshot its verdict; from then on only newer rows count towards the trigger."""
    key = find_snapshot(connection, set_key, name, snapshot)
    entry = connection.execute(select(snapshots).where(snapshots.c.key == key)).one()
    if entry.state != UNDECIDED:
        raise DataError(
            f"ledger:{name}@{snapshot} is {entry.state} since {entry.decided}, so it cannot be "
            f"{state} now. Nothing was changed."
        )
    connection.execute(
        update(snapshots)
        .where(snapshots.c.key == key)
        .values(state=state, verdict=verdict, decided=now())
    )
    connection.execute(
        update(sets)
        .where(sets.c.key == set_key, sets.c.judged < entry.last_row)
        .values(judged=entry.last_row)
    )
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


def rollback(home: Path, model: str, generation: int, reason: str) -> Generation:
    """Makes an earlier generation the champion again; the rows of those after it are given back.

    Raises:
        RecipeError: The lineage has no such generation, or it is the champion.
    """
    with opened(home, create=False) as engine, writing(engine) as connection:
        live = _live(connection, model)
        after = [entry for entry in live if entry.generation > generation]
        if generation not in {entry.generation for entry in live} or not after:
            numbers = ", ".join(str(entry.generation) for entry in live) or "none"
            raise RecipeError(
                f"{model} cannot go back to generation {generation}: its lineage is {numbers}. "
                "Name one of these before the last."
            )
        for entry in after:
            connection.execute(
                update(promotions)
                .where(promotions.c.model == model, promotions.c.generation == entry.generation)
                .values(undone=reason or "rolled back")
            )
            _give_back(connection, entry.snapshot)
        faultpoint("ledger.rollback.commit")
        head = _head(connection, model)
        assert head is not None
        return head


def _give_back(connection: Connection, snapshot: int | None) -> None:
    if snapshot is not None:
        connection.execute(update(rows).where(rows.c.snapshot == snapshot).values(snapshot=None))
        connection.execute(
            update(snapshots).where(snapshots.c.key == snapshot).values(state=ROLLED_BACK)
        )


def _live(connection: Connection, model: str) -> list[Any]:
    return list(
        connection.execute(
            select(promotions, snapshots.c.name.label("snapshot_name"))
            .join(snapshots, snapshots.c.key == promotions.c.snapshot, isouter=True)
            .where(promotions.c.model == model, promotions.c.undone.is_(None))
            .order_by(promotions.c.generation)
        )
    )


def _head(connection: Connection, model: str) -> Generation | None:
    live = _live(connection, model)
    return _generation(live[-1]) if live else None


def _generation(entry: Any) -> Generation:
    return Generation(
        entry.model,
        entry.generation,
        entry.digest,
        json.loads(entry.artifacts),
        entry.snapshot_name,
        entry.reason,
        entry.created,
    )


def lineage(home: Path, model: str) -> list[Generation]:
    """The generations that led to the champion, oldest first."""
    with opened(home, create=False) as engine, reading(engine) as connection:
        return [_generation(entry) for entry in _live(connection, model)]


def mark_dropped(home: Path, name: str, reasons: Mapping[str, str]) -> int:
    """Records rows that `prepare` could not use, by id: they wait no more. Returns how many there are."""
    with opened(home, create=False) as engine, writing(engine) as connection:
        key = preference_set(connection, name)
        return sum(
            connection.execute(
                update(rows)
                .where(rows.c.preference_set == key, rows.c.id == bytes.fromhex(name_))
                .values(dropped=reason)
            ).rowcount
            for name_, reason in reasons.items()
        )
