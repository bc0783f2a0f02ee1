"""From new preferences to a new champion, if it is really better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from alignflow.lineage import (
    RetrainRun,
    Waiting,
    agreed,
    begin_lineage,
    gated,
    look,
    project,
    register,
    repair,
    settle,
)
from alignflow.pipeline import watched
from alignflow.recipe import Recipe
from tasks.driver import PREFECT, demand_home, ended, nothing_to_do
from tasks.events import send_pending


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
    repair(place, recipe.registered_model, PREFECT)
    work = look(recipe, place, PREFECT)
    if isinstance(work, Waiting):
        send_pending(place)
        return nothing_to_do(work)
    with watched(RetrainRun(work, place, reason, PREFECT)) as run:
        for stage in work.recipe.stages:
            if stage == "merge":
                begin_lineage(run)
            run.complete(run.in_force(stage))
        register(run)
        while not settle(run, agreed(run, gated(run))):
            continue  # another run promoted its candidate first: the gate is due again
    project(run)
    send_pending(place)
    return ended(run)
