"""A model by any name that a person knows it by: a folder, a run, or a version in MLflow's registry."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from alignflow.checking import raise_errors, refusals
from alignflow.errors import ArtifactError, RecipeError
from alignflow.pipeline.report import REPORT_FILE, load_report, recent_runs
from alignflow.stages import ADAPTER, MODEL
from alignflow.tracking import tracking_uri, version_named

ADAPTER_CONFIG = "adapter_config.json"
LAST = "last"
REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def model_named(name: Path | str, home: Path) -> Path:
    """Directory of the merged model or adapter that a name stands for.

    Args:
        name: A directory of a model, of an adapter, or of the artifact or run that made one; `last`
            or a run's id; `models:/NAME@champion` or `models:/NAME/2`.
        home: Where runs and the local registry are.

    Raises:
        ArtifactError: There is no such model.
        RecipeError: There is no such run or version, or the model's files could run code.
    """
    found = _found(str(name), home)
    if not holds_model(found):
        raise ArtifactError(
            f"{found} holds no model (neither config.json nor {ADAPTER_CONFIG}). Name a directory of "
            "a merged model or of an adapter, a run (`last`), or models:/NAME@champion; `alignflow "
            "show` names what a run made."
        )
    raise_errors(str(found), refusals(found, ""))
    return found


def holds_model(directory: Path) -> bool:
    """Whether a directory is that of a merged model or of an adapter."""
    return (directory / "config.json").is_file() or is_adapter(directory)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no whole model."""
    return (directory / ADAPTER_CONFIG).is_file()


def run_named(name: str, home: Path) -> str:
    """Id of a run: `last`, its own, or the directory of its report.

    Raises:
        RecipeError: `last`, and there is no run.
    """
    if (Path(name) / REPORT_FILE).is_file():
        return Path(name).resolve().name
    if name != LAST:
        return name
    runs = recent_runs(home)
    if not runs:
        raise RecipeError(f"There is no run in {home}. Start one with `alignflow run RECIPE`.")
    return runs[0]


def _found(name: str, home: Path) -> Path:
    if name.startswith("models:"):
        return _registered(name, home)
    directory = Path(name)
    if not directory.is_dir() and (name == LAST or (home / "runs" / name).is_dir()):
        return _of_run(name, home)
    if (directory / REPORT_FILE).is_file():
        return _of_run(str(directory), directory.resolve().parents[1])
    inside = (directory / part for part in (MODEL, ADAPTER))
    return directory if holds_model(directory) else next(filter(holds_model, inside), directory)


def _of_run(name: str, home: Path) -> Path:
    report = load_report(home, run_named(name, home))
    made = report.merged_model or report.adapter
    if made is None:
        raise ArtifactError(f"run {report.run_id} made no model: it is {report.status}.")
    return Path(made)


def _registered(name: str, home: Path) -> Path:
    """The model's directory in this home, else the one that the registry names.

    Raises:
        RecipeError: The name or the version is not known, or its files are elsewhere.
    """
    parts = REGISTERED.fullmatch(name)
    if parts is None:
        raise RecipeError(
            f"{name} names no version. Write models:/NAME@champion or models:/NAME/2."
        )
    version = version_named(tracking_uri(home), **parts.groupdict())
    here = home / "artifacts" / "merge" / version.tags.get("stage_key", "") / MODEL
    source = urlsplit(str(version.source))
    there = Path(unquote(source.path)) if source.scheme == "file" else None
    for place in (here, there):
        if place is not None and holds_model(place):
            return place
    raise RecipeError(
        f"{name} is version {version.version}, whose files are at {version.source} and not here. "
        f"Fetch them with `mlflow artifacts download -u models:/{version.name}/{version.version}` and name "
        "that directory."
    )
