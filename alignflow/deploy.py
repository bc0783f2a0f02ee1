"""The build step of `prefect.yaml`: a bad recipe or a relative home fails the deployment.

The step needs no Prefect. What it returns fills the deployments' parameters.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alignflow.errors import RecipeError
from alignflow.inbox import default_inbox
from alignflow.recipe import DATA_PARTS, DataSource, ModelSource, Recipe
from alignflow.recipe_file import load_recipe
from alignflow.retraining import require_retrain
from alignflow.settings import Settings

WORK_POOL = "alignflow"
PASSED_ON = ("ALIGNFLOW_HOME", "MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE", "HF_HOME")
LOCAL_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")


def check_recipe(recipe: str) -> dict[str, Any]:
    """Loads and checks the recipe that is deployed.

    Args:
        recipe: Path of the recipe; ALIGNFLOW_RECIPE replaces it.

    Returns:
        `recipe` (JSON, paths absolute), `home`, `inbox` and `environment`, for
        `{{ checked.NAME }}` in prefect.yaml.

    Raises:
        RecipeError: Lists everything that is wrong with the recipe, or it cannot be trained again
            (`retraining.require_retrain`), or the home is not absolute.
    """
    path = Path(os.environ.get("ALIGNFLOW_RECIPE", recipe))
    home = deployed_home()
    checked = with_absolute_paths(load_recipe(path, []), Path.cwd())
    require_retrain(checked)
    return {
        "recipe": checked.model_dump(mode="json"),
        "home": str(home),
        "inbox": os.environ.get("ALIGNFLOW_INBOX") or str(default_inbox(home)),
        "environment": passed_on(os.environ),
    }


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that every run of a deployment gets. Prefect shows them, so no secret is among them.

    Raises:
        RecipeError: An address holds a password.
    """
    found = {name: environment[name] for name in PASSED_ON if name in environment}
    for name, value in found.items():
        if "://" in value and urlsplit(value).password:
            raise RecipeError(
                f"{name} holds a password, which would stand in the deployments for everyone to "
                "read. Leave it out and give it to workers (MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in their environment)."
            )
    return found


def deployed_home() -> Path:
    """ALIGNFLOW_HOME.

    Raises:
        RecipeError: It is relative, so that a deployed flow would start with an empty ledger.
    """
    home = Settings().home.expanduser()
    if not home.is_absolute():
        raise RecipeError(
            f"ALIGNFLOW_HOME is {home}, a relative path. A deployed flow runs in another directory "
            "and would find an empty ledger there: set it to an absolute directory on storage "
            "that every worker mounts."
        )
    return home


def with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """`recipe` with every path in it taken from `folder`, for a flow that runs elsewhere."""
    data = recipe.data
    moved = {
        part: [_absolute(source, folder) for source in getattr(data, part)] for part in DATA_PARTS
    }
    changed: dict[str, Any] = {
        "data": data.model_copy(update=moved),
        "base_model": _absolute_model(recipe.base_model, folder),
    }
    section = recipe.retrain
    if section is not None and section.judge is not None and section.judge.model is not None:
        model = _absolute_model(section.judge.model, folder)
        judge = section.judge.model_copy(update={"model": model})
        changed["retrain"] = section.model_copy(update={"judge": judge})
    return recipe.model_copy(update=changed)


def _absolute_model(model: ModelSource, folder: Path) -> ModelSource:
    if not (folder / model.source).is_dir():
        return model
    return model.model_copy(update={"source": str(folder / model.source)})


def _absolute(source: DataSource, folder: Path) -> DataSource:
    if ":" in source.source or not source.source.endswith(LOCAL_SUFFIXES):
        return source
    return source.model_copy(update={"source": str(folder / source.source)})
