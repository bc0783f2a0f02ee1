"""Prompting, retrieval and training on the same questions, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from alignflow.deciding import DecideRun, choose, gather, judge, settle, update
from alignflow.pipeline import new_run_id, watched
from alignflow.recipe import Recipe
from tasks.driver import demand_home, prefect_driver


@flow(name="decide", flow_run_name="{recipe.name}")
def decide(recipe: Recipe, home: Path | None = None, run_id: str | None = None) -> dict[str, Any]:
    """Says whether to prompt, retrieve, fine-tune or pre-train, measured on the recipe's questions.

    A stage whose work was done before is not done again.

    Args:
        recipe: Its section `decide` says what is compared, and on what.
        home: Absolute directory of artifacts and runs, on storage that every worker mounts; None
            takes ALIGNFLOW_HOME.
        run_id: Names the decision; None makes one of the recipe's name and the time.
    """
    place, name = demand_home(home), run_id or new_run_id(recipe.name)
    with watched(DecideRun(recipe, place, name, prefect_driver(recipe.name))) as run:
        arms = gather(run)
        for arm in arms:
            choose(run, arm)
        for arm in arms:
            judge(run, arm)
        for arm in arms:
            update(run, arm)
        settle(run)
    return run.decision
