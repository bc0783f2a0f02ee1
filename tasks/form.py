"""What a person fills in to start a deployed flow: a recipe file with overrides, or the whole form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect.runtime import deployment

from alignflow.errors import RecipeError
from alignflow.recipe import Recipe, load_recipe
from alignflow.services import relative_paths


def recipe_of(recipe_file: str, overrides: Sequence[str], form: Recipe | None) -> Recipe:
    """The recipe of a file, else of the form, with overrides on top.

    Raises:
        RecipeError: There is neither, the recipe is wrong, or a deployed run is given a relative
            path, which would be looked for in a temporary directory.
    """
    if recipe_file:
        if deployment.id and not Path(recipe_file).is_absolute():
            raise RecipeError(_refused([f"recipe_file: {recipe_file}"]))
        recipe = load_recipe(Path(recipe_file), overrides)
    elif form is None:
        raise RecipeError(
            "There is no recipe: give recipe_file the absolute path of one, or fill in `recipe`."
        )
    elif overrides:
        recipe = load_recipe(form.model_dump(mode="json", exclude_unset=True), overrides)
    else:
        recipe = form
    if deployment.id and (relative := relative_paths(recipe)):
        raise RecipeError(_refused(relative))
    return recipe


def _refused(relative: Sequence[str]) -> str:
    return (
        f"{'; '.join(relative)}: a relative path, but a deployed flow runs in a temporary directory, "
        "where nothing of yours is. Give an absolute path on storage that every worker mounts."
    )
