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
from tasks.driver import demand_home, ended, nothing_to_do, prefect_driver
from tasks.events import send_pending
from tasks.form import recipe_of
from tasks.notification import failure_told, tell_verdict


@flow(name="retrain", flow_run_name="retrain: {reason}")
def retrain(
    recipe_file: str = "",
    overrides: tuple[str, ...] = (),
    home: Path | None = None,
    reason: str = "schedule",
    recipe: Recipe | None = None,
) -> State[dict[str, Any]]:
    """Trains on new preferences, gates the candidate, and promotes it if it is better.

    What starts it is only a hint: the ledger says whether there is anything to do.

    Args:
        recipe_file: A recipe file; in a deployed run an absolute path on storage that every worker
            mounts. Empty takes `recipe`, which a deployment fills in.
        overrides: Fields that are set otherwise, one an entry, such as `dpo.beta=0.2`.
        home: Absolute directory of artifacts, runs and the ledger, on storage that every worker
            mounts; None takes ALIGNFLOW_HOME.
        reason: Why it was started, for people: schedule, preferences, by hand.
        recipe: The whole form: what to train and how; its section `retrain` says when and what
            decides.
    """
    place, wanted = demand_home(home), recipe_of(recipe_file, overrides, recipe)
    with failure_told(wanted, "retrain"):
        driver = prefect_driver(wanted.name)
        repair(place, wanted.registered_model, driver)
        work = look(wanted, place, driver)
        if isinstance(work, Waiting):
            send_pending(place)
            return nothing_to_do(wanted, work)
        with watched(RetrainRun(work, place, reason, driver)) as run:
            for stage in work.recipe.stages:
                if stage == "merge":
                    begin_lineage(run)
                run.complete(run.in_force(stage))
            register(run)
            while not settle(run, agreed(run, gated(run))):
                continue  # another run promoted its candidate first: the gate is due again
        project(run)
        send_pending(place)
        tell_verdict(wanted, run)
    return ended(run)
