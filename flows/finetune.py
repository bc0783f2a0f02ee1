"""From data to a merged model, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from alignflow.pipeline import PipelineRun, new_run_id, watched
from alignflow.recipe import Recipe
from tasks.driver import PREFECT, demand_home


@flow(name="finetune", flow_run_name="{recipe.name}")
def finetune(recipe: Recipe, home: Path | None = None, run_id: str | None = None) -> dict[str, Any]:
    """Prepares data, fine-tunes, aligns, evaluates and merges, as the recipe says.

    A stage whose work was done before, here or in another run, is not done again.

    Args:
        recipe: What to train, on what, how, and how to judge it.
        home: Absolute directory of artifacts, runs and the ledger, on storage that every worker
            mounts; None takes ALIGNFLOW_HOME.
        run_id: Names the run's report; None makes one of the recipe's name and the time.
    """
    place = demand_home(home)
    with watched(PipelineRun(recipe, place, run_id or new_run_id(recipe.name), PREFECT)) as run:
        for stage in recipe.stages:
            run.complete(run.in_force(stage))
    return run.report
