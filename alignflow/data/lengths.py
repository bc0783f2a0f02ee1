"""How long a row may be, from what the stages that train on it take."""

from __future__ import annotations

from collections.abc import Mapping

from alignflow.recipe import TRAINING_STAGES, Recipe

LIMITED_PARTS = ("sft", "preferences", "ratings", "prompts")
"""Parts whose rows have a longest length. Documents have none: they are packed."""


def readers_of(part: str, recipe: Recipe) -> list[str]:
    """Stages that train on whole rows of a part; longer ones are of no use to any.

    A method that samples reads of preferences the prompts alone, unless its settings say more.
    """
    readers: list[str] = []
    for stage, section in recipe.training_sections.items():
        row = TRAINING_STAGES[stage]
        whole = {*sum(row.parts, ()), *row.optional_parts} - (
            {"preferences"} if row.samples else set()
        )
        if part in whole.union(section.also_reads()):
            readers.append(stage)
    return readers


def limits_of(recipe: Recipe) -> dict[str, int | None]:
    """Longest row of each part, in tokens: the longest that a stage takes; None where none reads it."""
    sections = recipe.training_sections
    return {
        part: max((sections[stage].max_length for stage in readers_of(part, recipe)), default=None)
        for part in LIMITED_PARTS
    }


def within_context(limits: Mapping[str, int | None], context: int | None) -> dict[str, int | None]:
    """The limits, none above what the model can see."""
    return {
        part: min((n for n in (limit, context) if n is not None), default=None)
        for part, limit in limits.items()
    }
