"""Answers of an `evaluate` artifact, and the prompts on which two models' answers tell most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.stages import RESPONSES_FILE

TOLD = 5
"""Prompts that are shown of a comparison."""


class Answer(NamedTuple):
    """A model's responses to a prompt."""

    prompt_index: int
    """Place of the prompt in the evaluation; equal prompts have the first one's."""
    question: str
    conversation: str
    """The whole prompt as a judge reads it."""
    target: str
    text: str
    """Greedy."""
    sampled: str | None
    """Drawn at a temperature, where the evaluation samples."""
    score: float | None
    """Of the greedy one by the recipe's first metric: 1 right, 0 wrong; None where it gives no figure by prompt."""


def read_answers(evaluation: Path, role: str | None) -> dict[str, Answer]:
    """Prompt's name to the answer of the model in a role, in an artifact; None is the only one.

    Empty where the artifact is gone or has no answers, as after an evaluation on general text.
    """
    path = evaluation / RESPONSES_FILE
    if not path.is_file():
        return {}
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    answers: dict[str, Answer] = {}
    for row in rows:
        if role is None or row["model"] == role:
            answers.setdefault(row["prompt_name"], _answer(row))
    return answers


def _answer(row: Mapping[str, Any]) -> Answer:
    score = row.get("greedy_correct")
    return Answer(
        prompt_index=row["prompt_index"],
        question=row["question"],
        conversation=row["conversation"],
        target=row["target"],
        text=row["greedy"],
        sampled=row.get("sampled"),
        score=score if score is not None and math.isfinite(score) else None,
    )


def telling_changes(
    before: Mapping[str, float], after: Mapping[str, float], count: int = TOLD
) -> list[str]:
    """Prompts whose score changed most, those that got better first; as many of each as there are.

    Among equal changes the prompts' names decide, which are digests: nobody has chosen.

    Args:
        before: Score by prompt.
        after: The other model's; prompts that only one has are left out.
        count: How many at most.
    """
    changes = {name: after[name] - before[name] for name in after if name in before}
    ranked = sorted(changes, key=lambda name: (-abs(changes[name]), name))
    better = [name for name in ranked if changes[name] > 0]
    worse = [name for name in ranked if changes[name] < 0]
    of_better = min(len(better), max(count - len(worse), (count + 1) // 2))
    return better[:of_better] + worse[: count - of_better]
