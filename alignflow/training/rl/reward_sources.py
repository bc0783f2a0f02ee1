"""Where rewards come from besides the reward model: the builtin judge, or the user's function.

A source takes three lists of equal length, `prompts` and `responses` as text and `targets`, and
returns one number each. The same sources serve PPO, RLOO and GRPO.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignflow.errors import DataError, EvaluationError, RecipeError
from alignflow.recipe.rewards import EXECUTION, REWARD_MODEL, RewardTerm

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
        term.source: _checked(term.source, _function(term.source, paths or {}))
        for term in terms
        if term.source != REWARD_MODEL
    }


def _function(source: str, paths: Mapping[str, str]) -> Callable[..., Any]:
    if source == EXECUTION:
        return execution_reward
    place, _, name = source.rpartition(":")
    try:
        if place.endswith(".py"):
            return getattr(_module_at(Path(paths.get(source, place))), name)
        return getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError, OSError, ValueError) as error:
        raise RecipeError(
            f"rewards names {source!r}, which cannot be imported ({type(error).__name__}: {error})."
            " Write `package.module:name`, importable where stages run, or `path/to/file.py:name`."
        ) from error


def _module_at(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"alignflow_reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checked(source: str, function: Callable[..., Any]) -> RewardFunction:
    def scores(prompts: list[str], responses: list[str], targets: list[str | None]) -> Tensor:
        found = [
            float(score)
            for score in function(prompts=prompts, responses=responses, targets=targets)
        ]
        if len(found) != len(responses) or not all(math.isfinite(score) for score in found):
            raise EvaluationError(
                f"The reward {source!r} gave {len(found)} scores, {found[:3]} first, for "
                f"{len(responses)} responses; it must give one finite number for each."
            )
        return torch.tensor(found, dtype=torch.float32)

    return scores


def execution_reward(
    prompts: list[str], responses: list[str], targets: list[str | None]
) -> list[float]:
    """1.0 where the freight judge finds an answer right, else 0.0.

    Raises:
        DataError: A prompt has no target.
    """
    from alignflow.builtin.freight.judge import judge

    del prompts
    scores = []
    for response, target in zip(responses, targets, strict=True):
        if target is None:
            raise DataError(
                "The reward `execution` compares with a target, and a prompt has none. Name a "
                "source with the columns prompt and target in data.prompts."
            )
        scores.append(float(judge(response, target).correct))
    return scores


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
    """Weighted sum of the standardized scores of all sources, within ± clamp; [B].

    Args:
        scores: Of one batch by source, [B] each.
        scales: Of the first batch, by source.
        terms: Sources and weights.
        clamp: Greatest size of the sum.
    """
    total = sum(term.weight * scales[term.source].apply(scores[term.source]) for term in terms)
    return torch.as_tensor(total).clamp(-clamp, clamp)
