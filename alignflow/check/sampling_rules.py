"""What a recipe shows to be wrong with the section of a method that samples."""

from __future__ import annotations

from collections.abc import Iterator

from alignflow.check.findings import Finding, error, raised
from alignflow.errors import RecipeError
from alignflow.recipe import Recipe, RewardedSection
from alignflow.recipe.online import SampledSection
from alignflow.recipe.resolve import resolve_function
from alignflow.recipe.rewards import EXECUTION


def sampling_findings(recipe: Recipe) -> Iterator[Finding]:
    """Findings about responses and what they are rewarded by; none for another method."""
    section = recipe.settings(SampledSection)
    if section is None:
        return
    if section.max_new_tokens >= section.max_length:
        yield error(
            f"{recipe.method}.max_new_tokens",
            f"is {section.max_new_tokens} of max_length {section.max_length}, which leaves no room "
            "for a prompt; raise max_length.",
        )
    field = f"{recipe.method}.rewards"
    for term in section.rewards if isinstance(section, RewardedSection) else ():
        if term.is_function:
            try:
                resolve_function(term.source, field)
            except RecipeError as problem:
                yield raised(problem)
        elif term.source == EXECUTION and not recipe.data.prompts:
            yield error(
                field,
                "names execution, which compares with targets, but data.prompts is empty; name "
                "prompts with a `target` each.",
            )
