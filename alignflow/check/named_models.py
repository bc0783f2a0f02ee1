"""The models that a stage's section names beside the base, such as a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alignflow.check.architecture import Shape, base_shape
from alignflow.check.findings import Finding, error, exit_code, raised, warning
from alignflow.check.model_files import model_directory, refusals
from alignflow.data.vocabulary import TOKENIZER_FILE, reading_difference, vocabulary_difference
from alignflow.errors import AlignflowError
from alignflow.recipe import ModelSource, Recipe
from alignflow.recipe.names import is_hub_id


def named_models(recipe: Recipe, base: Path | None) -> tuple[dict[str, Shape], list[Finding]]:
    """Shapes of the models by field of the recipe, and what is wrong with them.

    Args:
        recipe: Names them.
        base: Directory of the base model; None where it is not on this machine.
    """
    shapes: dict[str, Shape] = {}
    findings: list[Finding] = []
    for stage, section in recipe.training_sections.items():
        for name, model in section.models().items():
            field = f"{stage}.{name}"
            shape, problems = _seen(recipe, field, model, base)
            findings += problems
            if shape is not None:
                shapes[field] = shape
    return shapes, findings


def _seen(
    recipe: Recipe, field: str, model: ModelSource, base: Path | None
) -> tuple[Shape | None, list[Finding]]:
    try:
        directory = model_directory(model, field)
    except AlignflowError as problem:
        return None, [raised(problem)]
    is_local = directory is not None and not is_hub_id(model.source)
    refused = refusals(directory, field) if directory is not None and is_local else []
    shape, problems = base_shape(model, directory, field)
    findings = [*refused, *problems]
    if directory is not None and base is not None and exit_code(findings) == 0:
        findings += _compared(recipe, field, directory, base)
    return shape, findings


def _compared(recipe: Recipe, field: str, directory: Path, base: Path) -> Iterator[Finding]:
    """Whether it has the base's tokens, which are all that a stage gives it to read."""
    if difference := vocabulary_difference(base, directory):
        yield error(
            field,
            f"has another vocabulary than the base model: {difference}. Name a model of the same "
            "family and vocabulary.",
        )
        return
    if not (directory / TOKENIZER_FILE).is_file():
        text = f"{directory} has no {TOKENIZER_FILE}, so that its tokens are not compared."
        yield warning(field, text)
    template = recipe.base_model.chat_template
    if difference := reading_difference(base, directory, Path(template) if template else None):
        yield warning(field, f"{difference}; it judges texts that it was not taught to read.")
