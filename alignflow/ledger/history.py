"""What happened to a model, in order: its generations, verdicts on candidates, and ways back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from sqlalchemy import Connection, select

from alignflow.errors import RecipeError
from alignflow.ledger.outbox import PROMOTED as PROMOTED_EVENT
from alignflow.ledger.schema import outbox, promotions, sets, snapshots
from alignflow.ledger.store import opened, reading
from alignflow.ledger.verdicts import Release

Happened = Literal["founded", "promoted", "by hand", "rejected", "inconclusive", "rollback"]
BY_HAND = "by hand: "
"""How the reason of a promotion by a person begins."""


class Milestone(NamedTuple):
    """One thing that happened to a model."""

    time: str
    happened: Happened
    generation: int | None
    """That it became, or that was gone back to; None of a candidate that was not promoted."""
    reason: str
    snapshot: str | None
    undone: bool = False
    """Whether a rollback has undone it since."""


def milestones(home: Path, model: str) -> list[Milestone]:
    """What happened to a model, oldest first.

    Raises:
        DataError: There is no ledger.
        RecipeError: It knows no such model; the message lists those it knows.
    """
    with opened(home, create=False) as engine, reading(engine) as connection:
        promoted = {one.generation: one for one in _promotions(connection, model)}
        found = [*_moves(connection, model, promoted), *_releases(connection, model)]
        if not found:
            known = connection.execute(select(promotions.c.model).distinct()).scalars()
            raise RecipeError(
                f"{model} has no history in {home}. Models with one: "
                f"{', '.join(sorted(known)) or 'none'}."
            )
    return sorted(found, key=lambda one: one.time)  # equal times stay in the order of the moves


def _promotions(connection: Connection, model: str) -> Iterator[Milestone]:
    promoted = (
        select(promotions, snapshots.c.name.label("snapshot_name"))
        .join(snapshots, snapshots.c.key == promotions.c.snapshot, isouter=True)
        .where(promotions.c.model == model)
        .order_by(promotions.c.generation)
    )
    for entry in connection.execute(promoted):
        by_hand = entry.reason.startswith(BY_HAND)
        happened = "by hand" if by_hand else "promoted" if entry.generation else "founded"
        reason = entry.reason.removeprefix(BY_HAND)
        undone = entry.undone is not None
        yield Milestone(
            entry.created, happened, entry.generation, reason, entry.snapshot_name, undone
        )


def _releases(connection: Connection, model: str) -> Iterator[Milestone]:
    """Verdicts that gave rows back. One whose candidate a person promoted later is a promotion."""
    released = (
        select(snapshots, sets.c.model.label("owner"))
        .join(sets, sets.c.key == snapshots.c.preference_set)
        .where(snapshots.c.state.in_(get_args(Release)))
        .order_by(snapshots.c.key)
    )
    for entry in connection.execute(released):
        if (_model_in(entry.recipe) or entry.owner) == model:
            reason = _reasons_in(entry.verdict)
            yield Milestone(entry.decided, entry.state, None, reason, entry.name)


def _model_in(recipe: str | None) -> str | None:
    """Registered name in a recipe that was kept with a snapshot."""
    if recipe is None:
        return None
    content: dict[str, Any] = json.loads(recipe)
    tracking: dict[str, Any] = content.get("tracking") or {}
    return tracking.get("registered_model") or content.get("name")


def _reasons_in(verdict: str | None) -> str:
    """Reasons of a gate; what a person wrote, as it is."""
    with suppress(ValueError, TypeError, KeyError):
        return "; ".join(json.loads(verdict or "")["reasons"])
    return verdict or ""


def _moves(
    connection: Connection, model: str, promoted: Mapping[int | None, Milestone]
) -> Iterator[Milestone]:
    """Every change of the champion in order, as it was told to whoever serves the model.

    To a generation that was champion before it is a way back.
    """
    told = select(outbox.c.payload, outbox.c.created).where(outbox.c.event == PROMOTED_EVENT)
    undone = select(promotions.c.generation, promotions.c.undone)
    reasons: Any = connection.execute(undone.where(promotions.c.model == model)).all()
    why: dict[int, str | None] = dict(reasons)
    left = dict(promoted)
    before = -1
    for written, created in connection.execute(told.order_by(outbox.c.key)):
        payload = json.loads(written)
        if payload["model"] != model:
            continue
        head = payload["generation"]
        if made := left.pop(head, None):
            yield made
        elif head < before:
            yield Milestone(created, "rollback", head, why.get(before) or "", payload["snapshot"])
        before = head
    yield from left.values()  # of a ledger that told nobody yet
