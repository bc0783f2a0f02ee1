"""A retrain in plain Python: the order that `flows/retrain.py` has through Prefect."""

from __future__ import annotations

from pathlib import Path

from alignflow.errors import RecipeError
from alignflow.lineage.gating import agreed, gated
from alignflow.lineage.look import Waiting, look
from alignflow.lineage.run import RetrainRun
from alignflow.lineage.settling import begin_lineage, project, register, repair, settle
from alignflow.pipeline import IN_PROCESS, Report, plain_console, shown_on, watched
from alignflow.recipe import Recipe, require_retrain
from alignflow.settings import resolve_home


def retrain(
    recipe: Recipe,
    *,
    home: Path | str | None = None,
    reason: str = "by hand",
    progress: bool = True,
) -> Report | Waiting:
    """Trains on new preferences, gates the candidate, and promotes it if it is better.

    The ledger says whether there is anything to do. `report.retrain` has the verdict. Events that
    the ledger writes wait in its outbox for a run that Prefect carries out.

    Args:
        recipe: What to train and how; its section `retrain` says when and what decides.
        home: Directory of all results; None is ALIGNFLOW_HOME or `.alignflow`.
        reason: Why it was started, for people.
        progress: Show a bar per stage on stderr or in the notebook.

    Returns:
        The report; `Waiting` where there is nothing to train on, which has a `status` too.

    Raises:
        RecipeError: The recipe asks for a person's approval: only a Prefect run can wait for it.
        AlignflowError: A stage failed for good; the snapshot is resumed by the next retrain.
    """
    place = resolve_home(home)
    _refuse_approval(recipe)
    repair(place, recipe.registered_model, IN_PROCESS)
    work = look(recipe, place, IN_PROCESS)
    if isinstance(work, Waiting):
        return work
    _refuse_approval(work.recipe)
    shown = shown_on(plain_console(stderr=True) if progress else None)
    with shown, watched(RetrainRun(work, place, reason, IN_PROCESS)) as run:
        for stage in work.recipe.stages:
            if stage == "merge":
                begin_lineage(run)
            run.complete(run.in_force(stage))
        register(run)
        while not settle(run, agreed(run, gated(run))):
            continue  # another run promoted its candidate first: the gate is due again
    project(run)
    return run.report


def _refuse_approval(recipe: Recipe) -> None:
    if require_retrain(recipe).approval == "required":
        raise RecipeError(
            f"{recipe.name}: retrain.approval is required, and a run in plain Python has nobody to "
            "ask: a person answers in the Prefect UI. Deploy the recipe and start "
            "`prefect deployment run retrain/NAME`, or set retrain.approval to none."
        )
