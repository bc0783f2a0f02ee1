"""Candidate against champion on one pinned set: reads what was scored, asks the judge, gates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from alignflow.data import HOLDOUT, main_places, transcript
from alignflow.errors import EvaluationError, RecipeError
from alignflow.evaluation import Scores, read_answers, read_scores, telling_changes
from alignflow.files import digest_json
from alignflow.gate.decision import gate
from alignflow.gate.judge import JudgementCache, PairJudge, Question, judge_name, judge_of
from alignflow.gate.primary import JudgedWins
from alignflow.gate.verdict import Flip, Verdict
from alignflow.ledger import held_out_pairs
from alignflow.recipe import Recipe, require_retrain
from alignflow.stages import Artifact, Prepared


class Contestants(NamedTuple):
    """Two models, each with its evaluation of the same pinned set; None where nothing is pinned."""

    candidate: str
    """Digest."""
    champion: str
    """Digest."""
    ours: Artifact | None
    theirs: Artifact | None


def contest(
    recipe: Recipe, home: Path, models: Contestants, look: int, answers: Path | None = None
) -> Verdict:
    """Whether the candidate is better, and harms nothing.

    `retrain.gate.metric` decides where it is named, else the judge, else the recipe's first metric.
    With none of these, or nothing to judge on, the verdict is inconclusive. `look` says which test
    on this hold-out it is, from 1; `answers` are those of a judge that is a model, from stage
    `judge`, of any other they are kept in the home, which is absolute.

    Raises:
        EvaluationError: The two were not scored on the same set, or the judge does not answer.
        RecipeError: `retrain.gate.metric` is not a metric of the recipe.
    """
    section = require_retrain(recipe).gate
    if models.ours is None or models.theirs is None:
        nobody = Scores(model=models.candidate), Scores(model=models.champion)
        return gate(*nobody, section, evaluation="none", look=look)
    pinned = _pinned(models.ours, models.theirs)
    ours, theirs = read_scores(models.ours), read_scores(models.theirs)
    candidate = ours["aligned"].model_copy(update={"model": models.candidate})
    champion = next(iter(theirs.values())).model_copy(update={"model": models.champion})
    judged = None
    if decides(recipe) == "judge":
        judged = _judged(recipe, home, models.ours, models.theirs, answers)
        # The judge was asked for, so no metric that happens to be there takes its place.
        candidate = candidate.model_copy(update={"metrics": {}})
    elif section.metric is not None and section.metric not in candidate.metrics:
        raise RecipeError(
            f"retrain.gate.metric is {section.metric!r}, but the evaluation has "
            f"{', '.join(candidate.metrics) or 'no metric by prompt'}. Name one of these."
        )
    base = ours.get("base")
    verdict = gate(
        candidate, champion, section, evaluation=pinned, look=look, base=base, judged=judged
    )
    return verdict.model_copy(
        update={"flips": _flips(verdict, candidate, champion, judged, models)}
    )


def _flips(
    verdict: Verdict,
    candidate: Scores,
    champion: Scores,
    judged: JudgedWins | None,
    models: Contestants,
) -> list[Flip]:
    """Where the answers differ most by what decided; nothing where no prompt has a score or an answer."""
    assert models.ours is not None
    answers = read_answers(models.ours.directory, "aligned")
    before: Mapping[str, float] = champion.metrics.get(verdict.judge or "", {})
    after: Mapping[str, float] = candidate.metrics.get(verdict.judge or "", {})
    if judged is not None and verdict.judge == judged.judge:
        after = {name: judged.wins[one.conversation] for name, one in answers.items()}
        before = {name: 1.0 - won for name, won in after.items()}
    return [
        Flip(prompt_index=answers[name].prompt_index, before=before[name], after=after[name])
        for name in telling_changes(before, after)
        if name in answers
    ]


def decides(recipe: Recipe) -> str:
    """`judge` or `metric`: an explicit metric first, then the judge, then the first metric."""
    section = require_retrain(recipe)
    return "metric" if section.gate.metric or section.judge is None else "judge"


def _pinned(ours: Artifact, theirs: Artifact) -> str:
    """Digest of the set that both were scored on."""
    digests = {artifact.spec.inputs["data"].digest for artifact in (ours, theirs)}
    if len(digests) != 1:
        raise EvaluationError(
            f"{ours.path} and {theirs.path} were not scored on the same prompts, so they are not "
            "compared. Run the retrain again."
        )
    return digests.pop()


def _judged(
    recipe: Recipe, home: Path, ours: Artifact, theirs: Artifact, answers: Path | None
) -> JudgedWins:
    """Wins of the candidate's greedy responses, and whether the judge agrees with humans."""
    section = require_retrain(recipe).judge
    assert section is not None
    name = judge_name(section)
    kept = home / "cache" / "judgements" / f"{digest_json(name)[:16]}.jsonl"
    at_once = section.endpoint_requests if section.endpoint else 1
    judge = PairJudge(name, judge_of(section), JudgementCache(answers or kept), at_once)
    return JudgedWins(
        judge=name,
        human_agreement=judge.agreement(_human_pairs(recipe, home)),
        wins=judge.compare(_compared(ours, theirs)),
    )


def questions(recipe: Recipe, home: Path, models: Contestants) -> list[Question]:
    """All (prompt, first, second) that `contest` asks a judge about, each pair in both orders."""
    assert models.ours is not None and models.theirs is not None
    responses = _compared(models.ours, models.theirs).items()
    pairs = [(prompt, *two) for prompt, two in responses] + _human_pairs(recipe, home)
    both = [q for prompt, one, two in pairs for q in ((prompt, one, two), (prompt, two, one))]
    return list(dict.fromkeys(q for q in both if q[1] != q[2]))


def _compared(ours: Artifact, theirs: Artifact) -> dict[str, tuple[str, str]]:
    """Prompt to the candidate's and the champion's response."""
    candidate, champion = (
        read_answers(ours.directory, "aligned"),
        read_answers(theirs.directory, None),
    )
    return {one.conversation: (one.text, champion[name].text) for name, one in candidate.items()}


def _human_pairs(recipe: Recipe, home: Path) -> list[Question]:
    """(prompt, chosen, rejected) of the hold-out."""
    return [
        (transcript(pair.prompt), pair.chosen, pair.rejected)
        for pair in held_out_pairs(home, require_retrain(recipe).preference_set)
    ]


def number_of_prompts(prepare: Artifact, recipe: Recipe) -> int:
    """Different prompts on which the deciding comparison will be made."""
    import pyarrow.parquet as pq

    path = Prepared(prepare.directory).evaluation
    if not path.is_file():
        return 0
    table = pq.read_table(path, columns=["prompt_ids", "group"])
    groups = table.column("group").to_pylist()
    by_judge = decides(recipe) == "judge"
    if not by_judge and set(groups) == {HOLDOUT}:
        return 0
    places = range(len(groups)) if by_judge else main_places(groups)
    ids = table.column("prompt_ids").to_pylist()
    return len({tuple(ids[place]) for place in places})
