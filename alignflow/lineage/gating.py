"""Candidate against champion: both scored on one pinned set, gated, and shown."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from alignflow.errors import StageError
from alignflow.faults import faultpoint
from alignflow.gate import Contestants, Verdict, as_page, contest, decides, judge_spec, questions
from alignflow.ledger import champion, set_state
from alignflow.lineage.retraining import champion_spec
from alignflow.lineage.run import RetrainRun
from alignflow.recipe import require_retrain
from alignflow.stages import JUDGEMENTS_FILE
from alignflow.tracking import model_digest


class Gated(NamedTuple):
    """What was decided, and against whom."""

    verdict: Verdict
    opponent: int
    """Generation of the champion."""


def gated(run: RetrainRun) -> Gated:
    """The verdict on the run's candidate against whoever is the champion now.

    Raises:
        StageError: The lineage has ended while the candidate was trained.
    """
    head = champion(run.home, run.work.model)
    if head is None:
        raise StageError(f"{run.work.model} has no champion any more. Run the retrain again.")
    theirs = None
    if "evaluate" in run.artifacts:  # the champion's, on the candidate's prompts
        asked = champion_spec(run.recipe, run.home, run.artifacts["prepare"], head)
        theirs = run.aside(asked, "champion")
        run.judged_beside["champion"] = theirs
    models = Contestants(
        candidate=model_digest(run.artifacts["merge"]),
        champion=head.digest,
        ours=run.artifacts.get("evaluate"),
        theirs=theirs,
    )
    answers = _answered(run, models)
    verdict = run.driver.patiently("gate", _gate, run, models, answers)
    decided = Gated(verdict, head.generation)
    _show(run, decided)
    faultpoint("retrain.gated")
    return decided


def _answered(run: RetrainRun, models: Contestants) -> Path | None:
    """What a judge says that is a model: it answers in a stage, on the device."""
    judge = require_retrain(run.recipe).judge
    a_model_decides = judge and judge.model and decides(run.recipe) == "judge"
    asked = questions(run.recipe, run.home, models) if a_model_decides and models.ours else None
    if not asked:
        return None
    return run.aside(judge_spec(run.recipe, run.home, asked)).directory / JUDGEMENTS_FILE


def _gate(run: RetrainRun, models: Contestants, answers: Path | None) -> Verdict:
    """Compares the two; a judge that is away is asked again for what it has not answered yet."""
    looks = set_state(run.home, run.work.preference_set, run.work.model).looks
    verdict = contest(run.recipe, run.home, models, looks + 1, answers)
    for reason in verdict.reasons:
        run.driver.log().info("%s: %s", verdict.verdict, reason)
    return verdict


def _show(run: RetrainRun, decided: Gated) -> None:
    verdict = decided.verdict
    run.notes.champion, run.notes.verdict = decided.opponent, verdict.verdict
    run.notes.gate = verdict
    page = as_page(verdict, decided.opponent)
    run.driver.show(page, "gate", f"{verdict.verdict}: {verdict.reasons[0]}")


def agreed(run: RetrainRun, decided: Gated) -> Gated:
    """The verdict, once a person has agreed to a promotion where the recipe asks for one."""
    run.status_if_left = "suspended"
    verdict = run.driver.approved(
        decided.verdict,
        require_retrain(run.recipe),
        run.home,
        run.work.snapshot,
        decided.opponent,
        as_page(*decided),
    )
    run.status_if_left = "cancelled"
    answered = decided._replace(verdict=verdict)
    if answered != decided:
        _show(run, answered)
    return answered
