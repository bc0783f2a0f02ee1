"""How long a row may be, from what the stages that train on it take."""

from __future__ import annotations

from collections.abc import Mapping

from alignflow.recipe import PAIR_STAGES

PART_READERS = {
    "sft": ("sft", "orpo"),
    "preferences": (*PAIR_STAGES, "kto"),
    "ratings": ("kto",),
    "prompts": ("ppo", "rloo", "grpo"),
}
"""Part to the stages that train on its rows; longer ones are of no use to any."""


def part_limits(lengths: Mapping[str, int | None]) -> dict[str, int | None]:
    """Longest row of each part, in tokens: the longest that a stage takes; None where none reads it.

    Args:
        lengths: Training stage to its max_length.
    """
    return {
        part: max((n for stage in readers if (n := lengths.get(stage))), default=None)
        for part, readers in PART_READERS.items()
    }


def within_context(limits: Mapping[str, int | None], context: int | None) -> dict[str, int | None]:
    """The limits, none above what the model can see."""
    return {
        part: min((n for n in (limit, context) if n is not None), default=None)
        for part, limit in limits.items()
    }
