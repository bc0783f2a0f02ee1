"""Candidate against champion: both scored on one pinned set, gated, and shown."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task

from alignflow.errors import StageError
from alignflow.faults import faultpoint
from alignflow.gate import (
    Contestants,
    Verdict,
    as_page,
    contest,
    decides,
    judge_spec,
    questions,
)
from alignflow.ledger import champion, set_state
from alignflow.lineage.retraining import Champion, champion_spec
from alignflow.recipe import Recipe, require_retrain
from alignflow.stages.artifacts import Artifact, verify
from alignflow.stages.layout import JUDGEMENTS_FILE
from alignflow.tracking import model_digest
from tasks.approval import with_approval
from tasks.patience import patient
from tasks.prefect_artifacts import show_markdown
from tasks.retraining import RetrainRun, as_champion


def gated(run: RetrainRun) -> Verdict:
    """The verdict on the run's candidate against whoever is the champion now.

    Raises:
        StageError: The lineage has ended while the candidate was trained.
    """
    head = as_champion(champion(run.home, run.plan.model))
    if head is None:
        raise StageError(f"{run.plan.model} has no champion any more. Run the retrain again.")
    run.opponent = head.generation
    models = Contestants(
        candidate=model_digest(run.artifacts["merge"]),
        champion=head.digest,
        ours=run.artifacts.get("evaluate"),
        theirs=_scored(run, head) if "evaluate" in run.artifacts else None,
    )
    verdict = gate_candidate(run.recipe, run.home, models, _answered(run, models))
    _show(run, verdict)
    faultpoint("retrain.gated")
    return verdict


def _scored(run: RetrainRun, head: Champion) -> Artifact:
    """The champion's evaluation on the candidate's prompts."""
    prepare = run.artifacts["prepare"]
    return run.aside(champion_spec(run.recipe, run.home, prepare, head, verify))


def _answered(run: RetrainRun, models: Contestants) -> Path | None:
    """What a judge says that is a model: it answers in a stage, on the device."""
    judge = require_retrain(run.recipe).judge
    if (
        judge is None
        or judge.model is None
        or models.ours is None
        or decides(run.recipe) != "judge"
    ):
        return None
    asked = questions(run.recipe, run.home, models)
    if not asked:
        return None
    return run.aside(judge_spec(run.recipe, run.home, asked)).directory / JUDGEMENTS_FILE


@task(**patient("gate"))
def gate_candidate(
    recipe: Recipe, home: Path, models: Contestants, answers: Path | None
) -> Verdict:
    """Compares the two; a judge that is away is asked again for what it has not answered yet."""
    name = require_retrain(recipe).preference_set
    looks = set_state(home, name, recipe.registered_model).looks
    verdict = contest(recipe, home, models, looks + 1, answers)
    for reason in verdict.reasons:
        get_run_logger().info("%s: %s", verdict.verdict, reason)
    return verdict


def _show(run: RetrainRun, verdict: Verdict) -> None:
    run.note(champion=run.opponent, verdict=verdict.verdict, gate=verdict.model_dump(mode="json"))
    page = as_page(verdict, run.opponent)
    show_markdown(page, "gate", f"{verdict.verdict}: {verdict.reasons[0]}")


def agreed(run: RetrainRun, verdict: Verdict) -> Verdict:
    """The verdict, once a person has agreed to a promotion where the recipe asks for one."""
    run.status_if_left = "suspended"
    found = with_approval(
        verdict,
        require_retrain(run.recipe),
        run.home,
        run.plan.snapshot,
        run.opponent,
        as_page(verdict, run.opponent),
    )
    run.status_if_left = "cancelled"
    if found != verdict:
        _show(run, found)
    return found
