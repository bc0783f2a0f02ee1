"""Whether answers are right: the recipe's metrics against every accepted answer, and abstention."""

from __future__ import annotations

import re
from collections.abc import Sequence

from alignflow.data import same_question
from alignflow.deciding.questions import Question
from alignflow.errors import EvaluationError
from alignflow.evaluation import MetricModule, compute_metric

_EDGES = re.compile(r"^\W+|\W+$")


def abstains(answer: str, abstention: str) -> bool:
    """Whether an answer is the abstention, whatever its capitals and the marks around it."""
    return _bare(answer) == _bare(abstention)


def _bare(text: str) -> str:
    return _EDGES.sub("", same_question(text))


def scores_of(
    metric: MetricModule, answers: Sequence[str], questions: Sequence[Question], abstention: str
) -> list[float]:
    """A metric's value of each answer: the best over its accepted answers.

    Of a question that has no answer it is 1 for abstaining, else 0.

    Raises:
        EvaluationError: The metric gives no value for each response.
    """
    pairs = [
        (place, answer, target)
        for place, (answer, question) in enumerate(zip(answers, questions, strict=True))
        if question.answerable
        for target in question.targets
    ]
    best = [
        0.0 if q.answerable else float(abstains(a, abstention))
        for a, q in zip(answers, questions, strict=True)
    ]
    if not pairs:
        return best
    figures = compute_metric(metric, [answer for _, answer, _ in pairs], [t for _, _, t in pairs])
    values = figures.per_prompt.get(metric.name)
    if values is None:
        raise EvaluationError(
            f"The metric {metric.name} gives no value for each response, which a paired test needs. "
            "Return them in `per_prompt` (docs/metrics.md), or name another metric first."
        )
    for (place, _, _), value in zip(pairs, values, strict=True):
        best[place] = max(best[place], value)
    return best
