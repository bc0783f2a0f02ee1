"""Where rewards come from besides the reward model: answers that are run, or the user's function.

A source takes three lists of equal length, `prompts` and `responses` as text and `targets`, and
returns one number each. The same sources serve PPO, RLOO and GRPO.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignflow.errors import DataError, EvaluationError
from alignflow.evaluation import execution_judge
from alignflow.recipe import (
    EXECUTION,
    REWARD_MODEL,
    ExecutionArguments,
    RewardTerm,
    load_function,
)

RewardFunction = Callable[[list[str], list[str], list[str | None]], Tensor]
"""(prompts, responses, targets) -> scores, [B] in float32."""


def load_rewards(
    terms: Sequence[RewardTerm], paths: Mapping[str, str] | None = None
) -> dict[str, RewardFunction]:
    """The functions behind all terms but `reward_model`, which its method scores itself.

    Args:
        terms: Of the recipe.
        paths: Where the files of `file.py:name` sources are, by source; else as they are named.

    Raises:
        RecipeError: A function cannot be imported.
    """
    return {
        term.source: _checked(
            term.source,
            execution_reward_on(term)
            if term.source == EXECUTION
            else _function(term.source, paths or {}),
        )
        for term in terms
        if term.source != REWARD_MODEL
    }


def _function(source: str, paths: Mapping[str, str]) -> Callable[..., Any]:
    path = paths.get(source)
    return load_function(source, "rewards", Path(path) if path else None)


def _checked(source: str, function: Callable[..., Any]) -> RewardFunction:
    def scores(prompts: list[str], responses: list[str], targets: list[str | None]) -> Tensor:
        given = list(map(float, function(prompts=prompts, responses=responses, targets=targets)))
        if len(given) != len(responses) or not all(math.isfinite(score) for score in given):
            raise EvaluationError(
                f"The reward {source!r} gave {len(given)} scores, {given[:3]} first, for "
                f"{len(responses)} responses; it must give one finite number for each."
            )
        return torch.tensor(given, dtype=torch.float32)

    return scores


def execution_reward_on(arguments: ExecutionArguments) -> Callable[..., list[float]]:
    """The reward `execution` on a recipe's databases, or on the freight job's where it names none.

    It is 1.0 for a response that the metric `execution_accuracy` finds right, else 0.0: a query that
    returns the target's rows on every database, or exactly the refusal where that is the target.

    Raises:
        DataError: A database is not there; when called, a prompt has no target.
    """
    judge = execution_judge(arguments)

    def reward(prompts: list[str], responses: list[str], targets: list[str | None]) -> list[float]:
        del prompts
        if None in targets:
            raise DataError(
                "The reward `execution` compares with a target, and a prompt has none. Name a "
                "source with the columns prompt and target in data.prompts."
            )
        return [
            float(judge(response, target or "").correct)
            for response, target in zip(responses, targets, strict=True)
        ]

    return reward


def execution_reward(
    prompts: list[str], responses: list[str], targets: list[str | None]
) -> list[float]:
    """The reward `execution` of the embedded freight job."""
    return execution_reward_on(ExecutionArguments())(prompts, responses, targets)


LEAST_STD = 1e-6


class RewardScale(NamedTuple):
    """Mean and standard deviation of one source's scores in the first batch, kept for the run.

    Where they are all the same there is no scale to learn from them, and it is 1.
    """

    mean: float
    std: float

    @classmethod
    def of(cls, scores: Tensor) -> RewardScale:
        """Measured on one batch, [B]."""
        std = scores.std(correction=0).item()
        return cls(scores.mean().item(), std if std > LEAST_STD else 1.0)

    def apply(self, scores: Tensor) -> Tensor:
        """Standardized scores, [B]."""
        return (scores - self.mean) / self.std


def combined(
    scores: Mapping[str, Tensor],
    scales: Mapping[str, RewardScale],
    terms: Sequence[RewardTerm],
    clamp: float,
) -> Tensor:
    """Weighted sum of the standardized scores of all sources ([B] each), within ± clamp; [B]."""
    total = sum(term.weight * scales[term.source].apply(scores[term.source]) for term in terms)
    return torch.as_tensor(total).clamp(-clamp, clamp)
