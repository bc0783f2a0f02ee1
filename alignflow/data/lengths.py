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


def part_limits(lengths: Mapping[str, int | None], context: int | None) -> dict[str, int | None]:
    """Longest row of each part, in tokens: the longest a stage takes that the model can see.

    Args:
        lengths: Training stage to its max_length.
        context: Of the base model.
    """
    limits = {}
    for part, readers in PART_READERS.items():
        longest = max((n for stage in readers if (n := lengths.get(stage))), default=None)
        limits[part] = min((n for n in (longest, context) if n is not None), default=None)
    return limits
