"""The build step of `prefect.yaml`: a bad recipe or a relative home fails the deployment.

The step needs no Prefect. What it returns fills the deployments' parameters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alignflow.checking import raise_errors, recipe_findings
from alignflow.errors import RecipeError
from alignflow.ledger import default_inbox
from alignflow.recipe import (
    DATA_PARTS,
    DATA_SUFFIXES,
    METHODS,
    TRAINING_STAGES,
    Recipe,
    load_recipe,
    pointed,
    require_retrain,
)
from alignflow.settings import Settings

WORK_POOL = "alignflow"
OTHER_SUFFIXES = (".py", ".jinja", ".json", ".sqlite", ".db", ".gguf", ".safetensors")
"""Of files beside data that a recipe names."""
PASSED_ON = (
    *("ALIGNFLOW_HOME", "ALIGNFLOW_MLFLOW_UI_URL", "MLFLOW_TRACKING_URI"),
    *("HF_HUB_OFFLINE", "HF_HOME"),
)
PATH_FIELDS = (
    *("base_model.source", "base_model.chat_template", "tuning.init_adapter"),
    *("evaluation.metrics", "evaluation.metrics.*.database", "evaluation.metrics.*.json_schema"),
    *("evaluation.json_schema", "ppo.watch.metric", "ppo.watch.metric.*.database"),
    *(f"{method}.rewards.{field}" for method in METHODS for field in ("source", "database")),
    "retrain.judge.model.source",
    *(
        f"{stage}.{name}.source"
        for stage, row in TRAINING_STAGES.items()
        for name in row.named_models
    ),
)
"""Fields, beside `data`, that may name a file or a directory."""


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
    home = absolute_home(Settings().home)
    checked = with_absolute_paths(load_recipe(path, []), Path.cwd())
    require_retrain(checked)
    raise_errors(str(path), recipe_findings(checked, small_model=False))
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
    passed = {name: environment[name] for name in PASSED_ON if name in environment}
    for name, value in passed.items():
        if "://" in value and urlsplit(value).password:
            raise RecipeError(
                f"{name} holds a password, which would stand in the deployments for everyone to "
                "read. Leave it out and give it to workers (MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in their environment)."
            )
    return passed


def absolute_home(given: Path) -> Path:
    """The home of deployed flows.

    Raises:
        RecipeError: It is relative, so that a deployed flow would start with an empty ledger.
    """
    home = given.expanduser()
    if not home.is_absolute():
        raise RecipeError(
            f"The flow's home is {home}, a relative path, but a deployed flow runs in a temporary "
            "directory and would find an empty ledger there. Set the parameter `home` or "
            "ALIGNFLOW_HOME to an absolute directory on storage that every worker mounts."
        )
    return home


def with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """`recipe` with every path in it taken from `folder`, for a flow that runs elsewhere."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    for part in DATA_PARTS:
        for source in values.get("data", {}).get(part, ()):
            name = source["source"]
            is_file = ":" not in name and name.endswith(DATA_SUFFIXES)
            if is_file or pointed(name):  # it need not be there yet
                source["source"] = str(folder / name)
    for field in PATH_FIELDS:
        _move(values, field.split("."), folder)
    return Recipe.model_validate(values)


def relative_paths(recipe: Recipe) -> list[str]:
    """Fields of a recipe that name a file or directory by a relative path, each with the path."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    given = [
        (f"data.{part}", source["source"])
        for part in DATA_PARTS
        for source in values.get("data", {}).get(part, ())
    ]
    given += [(field, text) for field in PATH_FIELDS for text in _texts(values, field.split("."))]
    return [f"{field}: {text}" for field, text in given if _is_relative(text)]


def _is_relative(text: str) -> bool:
    """Whether a name is a path, by how it looks, that begins in the working directory."""
    path = text.removeprefix("gguf:").partition(":")[0]
    looks = path.endswith((*DATA_SUFFIXES, *OTHER_SUFFIXES)) or path.startswith(("./", "../"))
    return looks and "://" not in text and not Path(path).expanduser().is_absolute()


def _texts(place: Any, parts: list[str]) -> Iterator[str]:
    """The texts at `parts` below `place`, in each entry of a list; `*` is any key."""
    if isinstance(place, list):
        for entry in place:
            yield from _texts(entry, parts)
    elif isinstance(place, dict):
        if not parts:  # a metric with arguments
            yield from place
            return
        name, *rest = parts
        for key in list(place) if name == "*" else [name]:
            yield from _texts(place.get(key), rest)
    elif isinstance(place, str) and not parts:
        yield place


def _move(place: Any, parts: list[str], folder: Path) -> None:
    """Makes the paths at `parts` below `place` absolute, in each entry of a list; `*` is any key."""
    if isinstance(place, list):
        for entry in place:
            _move(entry, parts, folder)
    elif isinstance(place, dict):
        name, *rest = parts
        for key in list(place) if name == "*" else [name]:
            value = place.get(key)
            if rest:
                _move(value, rest, folder)
            elif isinstance(value, list):
                place[key] = [_absolute(entry, folder) for entry in value]
            elif value is not None:
                place[key] = _absolute(value, folder)


def _absolute(text: Any, folder: Path) -> Any:
    """What is there below `folder` as an absolute path; `file.py:name` names a function in a file.

    Of a metric with arguments it is the name; anything else stays as it is.
    """
    if isinstance(text, dict) and len(text) == 1:
        return {_absolute(name, folder): arguments for name, arguments in text.items()}
    if not isinstance(text, str):
        return text
    file, colon, function = text.rpartition(":")
    if colon and file.endswith(".py") and (folder / file).is_file():
        return f"{folder / file}:{function}"
    return str(folder / text) if (folder / text).exists() else text
