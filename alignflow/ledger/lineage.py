"""The lineage of a model: promotion and rollback, each in one transaction with the rows it moves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, get_args

from sqlalchemy import Connection, Select, func, insert, select, update

from alignflow.errors import AlignflowError, RecipeError
from alignflow.faults import faultpoint
from alignflow.ledger.holdout import current_holdout
from alignflow.ledger.outbox import PROMOTED as PROMOTED_EVENT
from alignflow.ledger.outbox import count_new, is_waiting, write_event
from alignflow.ledger.schema import promotions, rows, snapshots
from alignflow.ledger.snapshots import UNDECIDED
from alignflow.ledger.store import count, find_set, now, opened, preference_set, reading, writing
from alignflow.ledger.verdicts import WITHDRAWN, Release, consume, give_back


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


class Judgement(NamedTuple):
    """What was decided about a model, by a gate or a person."""

    verdict: str
    """The gate's, or `founded`, or `rolled back`."""
    reason: str
    generation: int | None
    """That it became; None where it was not promoted."""
    snapshot: str | None


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
        looks = count(
            connection,
            snapshots.c.preference_set == key,
            snapshots.c.state.not_in((UNDECIDED, WITHDRAWN)),
            snapshots.c.holdout == current_holdout(connection)[0],
        )
        return SetState(
            count(connection, is_waiting(key)),
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
        snapshot: Snapshot it was trained on, without a verdict or given back by one; None for a
            model made by hand.

    Raises:
        PromotionRace: The champion is no longer the expected one. Nothing was changed.
        DataError: The snapshot is not there or is promoted, its rows are in another snapshot by
            now, or the set belongs to another model.
    """
    with opened(home) as engine, writing(engine) as connection:
        head = _head(connection, model)
        present = head.generation if head else None
        if present != expected:
            raise PromotionRace(
                f"The champion of {model} is generation {present}, the candidate was gated against "
                f"generation {expected}: nothing was promoted. Gate it against generation {present}."
            )
        newest = connection.execute(
            select(func.coalesce(func.max(promotions.c.generation), -1)).where(
                promotions.c.model == model
            )
        ).scalar_one()
        key = consume(connection, name, snapshot, model) if snapshot else None
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
        promoted = _announced_head(connection, model)
        faultpoint("ledger.promote.commit")
    faultpoint("ledger.promote.committed")
    return promoted


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
            give_back(connection, entry.snapshot)
        faultpoint("ledger.rollback.commit")
        return _announced_head(connection, model)


def _announced_head(connection: Connection, model: str) -> Generation:
    """The new head, told to whoever serves the model; the event is only a hint to look."""
    head = _head(connection, model)
    assert head is not None
    payload = {
        "model": model,
        "generation": head.generation,
        "digest": head.digest,
        "snapshot": head.snapshot,
        "model_uri": f"models:/{model}@champion",
        "path": f"{head.artifacts['merge']}/model" if "merge" in head.artifacts else None,
    }
    write_event(connection, PROMOTED_EVENT, payload)
    return head


def _promoted(model: str) -> Select[Any]:
    """Every generation of a model, undone ones too, with the names of their snapshots."""
    return (
        select(promotions, snapshots.c.name.label("snapshot_name"))
        .join(snapshots, snapshots.c.key == promotions.c.snapshot, isouter=True)
        .where(promotions.c.model == model)
        .order_by(promotions.c.generation)
    )


def _live(connection: Connection, model: str) -> list[Any]:
    return list(connection.execute(_promoted(model).where(promotions.c.undone.is_(None))))


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


def generation(home: Path, model: str, number: int) -> Generation | None:
    """A generation of a model, still in its lineage or undone."""
    numbered = _promoted(model).where(promotions.c.generation == number)
    with opened(home, create=False) as engine, reading(engine) as connection:
        entry = connection.execute(numbered).first()
        return _generation(entry) if entry else None


def lineage(home: Path, model: str) -> list[Generation]:
    """The generations that led to the champion, oldest first."""
    with opened(home, create=False) as engine, reading(engine) as connection:
        return [_generation(entry) for entry in _live(connection, model)]


def newest_generation(home: Path, model: str) -> int | None:
    """Number of the generation that was made last, undone or not; None before the lineage began."""
    with opened(home) as engine, reading(engine) as connection:
        numbers = select(func.max(promotions.c.generation)).where(promotions.c.model == model)
        return connection.execute(numbers).scalar_one()


def judgements(home: Path, model: str) -> dict[str, Judgement]:
    """Digest of a merged model to what was decided about it last."""
    judged = select(snapshots).where(snapshots.c.state.in_(get_args(Release)))
    with opened(home, create=False) as engine, reading(engine) as connection:
        held_back = connection.execute(judged.order_by(snapshots.c.key)).all()
        promoted = connection.execute(_promoted(model)).all()
    known: dict[str, Judgement] = {}
    for entry in held_back:
        with suppress(ValueError, TypeError, KeyError):  # words of a person's are no record
            gate = json.loads(entry.verdict)
            reason = "; ".join(gate["reasons"])
            known[gate["candidate"]] = Judgement(gate["verdict"], reason, None, entry.name)
    for entry in promoted:
        verdict = "promote" if entry.generation else "founded"
        said = (verdict, entry.reason) if entry.undone is None else ("rolled back", entry.undone)
        known[entry.digest] = Judgement(*said, entry.generation, entry.snapshot_name)
    return known


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
