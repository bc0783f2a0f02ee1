"""A decision in plain Python: the order that `flows/decide.py` has through Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignflow.checking import preflight
from alignflow.deciding.run import DecideRun
from alignflow.deciding.steps import choose, gather, judge, settle, update
from alignflow.pipeline import IN_PROCESS, new_run_id, plain_console, shown_on, watched
from alignflow.recipe import Recipe
from alignflow.settings import resolve_home


def decide(
    recipe: Recipe,
    *,
    home: Path | str | None = None,
    run_id: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures prompting, retrieval and training on the recipe's questions, and says which to use.

    Args:
        recipe: Its section `decide` says what is compared, and on what.
        home: Directory of all results; None is ALIGNFLOW_HOME or `.alignflow`.
        run_id: Names the decision; None makes one of the recipe's name and the time.
        progress: Show a bar per stage on stderr or in the notebook.

    Returns:
        What `alignflow decide --json` prints.

    Raises:
        AlignflowError: The recipe is refused, or a stage failed for good.
    """
    place = resolve_home(home)
    run = DecideRun(recipe, place, run_id or new_run_id(recipe.name), IN_PROCESS)
    preflight(recipe, recipe.name, place)
    with shown_on(plain_console(stderr=True) if progress else None), watched(run):
        arms = gather(run)
        for arm in arms:
            choose(run, arm)
        for arm in arms:
            judge(run, arm)
        for arm in arms:
            update(run, arm)
        settle(run)
    return run.decision
