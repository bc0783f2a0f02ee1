"""The table of a decision: a row for each arm, the verdict and its sentence, as `--json` has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignflow.deciding.answers import Answer, read_answers
from alignflow.deciding.arms import ARMS, BASE, ORACLE, described
from alignflow.deciding.cost import Cost, Work, break_even, cost_of
from alignflow.deciding.statistics import Values, interval
from alignflow.deciding.verdict import Rules, contender_of, sentence, verdict_of
from alignflow.recipe import ArmName

if TYPE_CHECKING:
    from alignflow.deciding.run import Asked, DecideRun

SAMPLES = 12
OWN_FIGURES = (
    *("accuracy_given_hit", "recall", "abstention", "false_abstention", "format_validity"),
    *("prompt_tokens", "response_tokens"),
)
"""Figures of the answers that the table repeats, a mean over seeds."""


class Measured(NamedTuple):
    """One arm on the verdict part."""

    asked: list[Asked]
    answers: list[list[Answer]]
    """By seed, then by question."""

    @classmethod
    def of(cls, asked: list[Asked]) -> Measured:
        """From its artifacts."""
        return cls(asked, [read_answers(each.answers.directory) for each in asked])

    @property
    def values(self) -> Values:
        """[seeds, questions]."""
        return np.array([[answer.value for answer in answers] for answers in self.answers])

    def mean(self, figure: str) -> float | None:
        """Of a figure over the seeds; None where it was not measured."""
        known = [v for each in self.asked if (v := each.figures.get(figure)) is not None]
        return sum(known) / len(known) if known else None

    @property
    def work(self) -> Work:
        """What a question and the preparing take, a mean over seeds."""
        works = np.array([each.work for each in self.asked], dtype=float)
        return Work(*map(float, works.mean(axis=0)))


def table_of(run: DecideRun) -> dict[str, Any]:
    """Everything of a decision as JSON; what was not measured is null."""
    section = run.section
    measured: dict[str, Measured] = {a: Measured.of(asked) for a, asked in run.asked.items()}
    values = {arm: each.values for arm, each in measured.items()}
    accuracy = {arm: float(each.mean()) for arm, each in values.items()}
    costs = {arm: cost_of(each.work, accuracy[arm], section) for arm, each in measured.items()}
    contender = contender_of(*_on_choice(run))
    groups = [answer.group for answer in measured[BASE].answers[0]]
    rules = Rules(section.alpha, section.power, section.smallest_effect)
    per_1000 = {arm: cost.per_1000 for arm, cost in costs.items()}
    verdict = verdict_of(values, groups, contender, per_1000, rules)
    arms = {arm: _row(run, arm, measured, costs[arm]) for arm in run.asked}
    told = verdict.recommended or contender
    for arm, row in arms.items():
        even = break_even(costs[arm], costs[told], section.updates_per_month)
        row["break_even_questions_per_month"] = None if arm == told else even
    questions = run.shared["questions"].result
    return {
        "recipe": run.recipe.name,
        "run_id": run.run_id,
        "arms": arms,
        "contender": contender,
        "recommended": verdict.recommended,
        "sentence": sentence(verdict, accuracy, per_1000),
        "verdict": verdict.model_dump(mode="json"),
        "questions": questions.metrics,
        "leaked": questions.details["leaked"],
        "currency": section.prices.currency,
        "questions_per_month": section.questions_per_month,
        "alpha": section.alpha,
        "base_model": run.base_directory,
        "made": {arm: run.made(arm, run.chosen[arm]) for arm in run.asked},
        "samples": samples(measured),
    }


def _on_choice(run: DecideRun) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy of each arm's best configuration on the choice part, and its cost."""
    best = {
        arm: next(asked for each, asked in tries if each == run.chosen[arm])
        for arm, tries in run.tried.items()
    }
    accuracy = {arm: asked.figures["accuracy"] or 0.0 for arm, asked in best.items()}
    return dict(accuracy), {
        arm: cost_of(asked.work, accuracy[arm], run.section).per_1000 for arm, asked in best.items()
    }


def _row(
    run: DecideRun, arm: ArmName, measured: Mapping[str, Measured], cost: Cost
) -> dict[str, Any]:
    own, values = measured[arm], measured[arm].values
    search = own.asked[0].search_seconds
    return {
        "accuracy": float(values.mean()),
        "interval": list(interval(values, seed=run.recipe.seed)),
        "by_seed": [float(row.mean()) for row in values],
        "choice": {described(c): asked.figures["accuracy"] for c, asked in run.tried[arm]},
        "configuration": described(run.chosen[arm]),
        "tried": run.chosen[arm].model_dump(mode="json", exclude_defaults=True),
        "cost_per_1000": cost.per_1000,
        "cost_per_correct": cost.per_correct,
        "cost_of_preparing": cost.preparing,
        "answering_per_1000": cost.answering_per_1000,
        "seconds_of_preparing": own.work.preparing_seconds,
        "latency_p50_seconds": _plus(own.mean("latency_p50_seconds"), search),
        "latency_p95_seconds": _plus(own.mean("latency_p95_seconds"), search),
        **{name: own.mean(name) for name in OWN_FIGURES},
        "forgetting_nats": _forgetting(arm, measured),
        "excluded_from_verdict": arm == ORACLE,
        "update": _update(run, arm, cost),
        "groups": _by_group(own),
    }


def _plus(seconds: float | None, further: float) -> float | None:
    return None if seconds is None else seconds + further


def _forgetting(arm: ArmName, measured: Mapping[str, Measured]) -> float | None:
    """Loss of general text above base's, in nats per token; an untrained arm forgets nothing."""
    before, after = measured[BASE].mean("general_loss"), measured[arm].mean("general_loss")
    if before is None:
        return None
    return 0.0 if not ARMS[arm].trained else None if after is None else after - before


def _update(run: DecideRun, arm: ArmName, cost: Cost) -> dict[str, float | None] | None:
    """What became of an arm when the documents changed, and what it takes to be right again."""
    if arm not in run.updated:
        return None
    asked = run.updated[arm]
    index = run.shared["changed"].seconds
    retrains = ARMS[arm].trained
    seconds = run.asked[arm][0].preparing_seconds if retrains else index
    again = ARMS[arm].trained or ARMS[arm].context in ("retrieved", "oracle")
    price = cost.preparing if retrains else cost_of_seconds(run, index)
    return {
        "accuracy": asked.figures["accuracy"],
        "stale": asked.figures.get("stale"),
        "seconds_to_be_right": seconds if again else None,
        "cost_to_be_right": price if again else None,
    }


def cost_of_seconds(run: DecideRun, seconds: float) -> float:
    """What so many seconds of the machine cost."""
    return run.section.prices.hour * seconds / 3600.0


def _by_group(own: Measured) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for answers in own.answers:
        for answer in answers:
            groups.setdefault(answer.group, []).append(answer.value)
    return {name: sum(values) / len(values) for name, values in groups.items()}


def samples(measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Answers of every arm to questions at even distances: not chosen by their looks."""
    base = measured[BASE].answers[0]
    count = min(SAMPLES, len(base))
    places = [round(number * (len(base) - 1) / max(count - 1, 1)) for number in range(count)]
    return [
        {
            "question": base[place].question,
            "targets": base[place].targets,
            "answers": {
                arm: {
                    "answer": own.answers[0][place].answer,
                    "value": own.answers[0][place].value,
                    "passages": [
                        {"document": p.document, "text": p.text}
                        for p in own.answers[0][place].passages
                    ],
                }
                for arm, own in measured.items()
            },
        }
        for place in dict.fromkeys(places)
    ]
