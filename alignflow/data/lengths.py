"""How long a row may be, from what the stages that train on it take."""

from __future__ import annotations

from collections.abc import Mapping

from alignflow.recipe import PAIR_STAGES, Recipe

PART_READERS = {
    "sft": ("sft", "orpo"),
    "preferences": (*PAIR_STAGES, "kto"),
    "ratings": ("kto",),
    "prompts": ("ppo", "rloo", "grpo"),
}
"""Part to the stages that train on its rows; longer ones are of no use to any."""


def limits_of(recipe: Recipe) -> dict[str, int | None]:
    """Longest row of each part, in tokens: the longest that a stage takes; None where none reads it."""
    readers = PART_READERS
    if recipe.ppo is not None and recipe.ppo.nll_weight:
        readers = {**readers, "preferences": (*readers["preferences"], "ppo")}
    lengths = recipe.lengths
    return {
        part: max((lengths[stage] for stage in stages if stage in lengths), default=None)
        for part, stages in readers.items()
    }


def within_context(limits: Mapping[str, int | None], context: int | None) -> dict[str, int | None]:
    """The limits, none above what the model can see."""
    return {
        part: min((n for n in (limit, context) if n is not None), default=None)
        for part, limit in limits.items()
    }
