"""From new preferences to a new champion, if it is really better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from alignflow.recipe import Recipe
from tasks.events import send_pending
from tasks.gating import agreed, gated
from tasks.pipeline import demand_home, watched
from tasks.promotion import (
    ended,
    found_lineage,
    nothing_to_do,
    projected,
    registered,
    repair,
    settled,
)
from tasks.retraining import RetrainRun, look


@flow(name="retrain", flow_run_name="{recipe.name}-{reason}")
def retrain(
    recipe: Recipe, home: Path | None = None, reason: str = "schedule"
) -> State[dict[str, Any]]:
    """Trains on new preferences, gates the candidate, and promotes it if it is better.

    What starts it is only a hint: the ledger says whether there is anything to do.

    Args:
        recipe: What to train and how; its section `retrain` says when and what decides.
        home: Absolute directory of artifacts, runs and the ledger, on storage that every worker
            mounts; None takes ALIGNFLOW_HOME.
        reason: Why it was started, for people: schedule, preferences, by hand.
    """
    place = demand_home(home)
    repair(place, recipe.registered_model)
    plan = look(recipe, place)
    if plan.action == "wait":
        send_pending(place)
        return nothing_to_do(plan)
    with watched(RetrainRun(plan, place, reason)) as run:
        for stage in plan.recipe.stages:
            run.complete(run.in_force(stage))
        registered(run)
        found_lineage(run)
        while not settled(run, agreed(run, gated(run))):
            continue
    projected(run)
    send_pending(place)
    return ended(run)
