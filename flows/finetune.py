"""From data to a merged model, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from alignflow.pipeline import PipelineRun, new_run_id, watched
from alignflow.recipe import Recipe
from tasks.driver import demand_home, prefect_driver
from tasks.form import recipe_of
from tasks.notification import failure_told


@flow(name="finetune", flow_run_name="finetune")
def finetune(
    recipe_file: str = "",
    overrides: tuple[str, ...] = (),
    home: Path | None = None,
    run_id: str | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Prepares data, fine-tunes, aligns, evaluates and merges, as the recipe says.

    A stage whose work was done before, here or in another run, is not done again.

    Args:
        recipe_file: A recipe file; in a deployed run an absolute path on storage that every worker
            mounts. Empty takes `recipe`, which a deployment fills in.
        overrides: Fields that are set otherwise, one an entry, such as `dpo.beta=0.2`.
        home: Absolute directory of artifacts, runs and the ledger, on storage that every worker
            mounts; None takes ALIGNFLOW_HOME.
        run_id: Names the run's report; None makes one of the recipe's name and the time.
        recipe: The whole form: what to train, on what, how, and how to judge it.
    """
    place, wanted = demand_home(home), recipe_of(recipe_file, overrides, recipe)
    driver, name = prefect_driver(wanted.name), run_id or new_run_id(wanted.name)
    watching = watched(PipelineRun(wanted, place, name, driver))
    with failure_told(wanted, "finetune"), watching as run:
        for stage in wanted.stages:
            run.complete(run.in_force(stage))
    return run.report
