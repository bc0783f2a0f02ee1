"""Resolving what a recipe names to files and digests: models, adapters, functions. No torch."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.errors import RecipeError
from alignflow.files import digest_directory, sha256_file
from alignflow.machine import asking_hub
from alignflow.recipe.names import is_builtin, is_gguf, is_hub_id
from alignflow.recipe.sources import ModelSource


class Resolved(NamedTuple):
    """A source's digest and, when it is on this machine, its absolute path."""

    digest: str
    path: str | None


def local_directory(model: ModelSource, field: str = "base_model") -> Path | None:
    """Where a model's files are; None for a Hub id. `field` is where in the recipe, for messages.

    None also for a GGUF file: the directory that is made of it lies in a home.

    Raises:
        RecipeError: The builtin name, the directory or the file does not exist, or is no model's.
    """
    if is_gguf(model.source):
        gguf_file(model.source, field)
        return None
    if is_builtin(model.source):
        from alignflow.builtin import base_model_directory

        try:
            return base_model_directory(model.source.removeprefix("builtin:"))
        except KeyError as error:
            raise RecipeError(f"{field}: {error.args[0]}.") from error
    if is_hub_id(model.source):
        return None
    directory = Path(model.source).expanduser().absolute()
    if (directory / "config.json").is_file():
        return directory
    if (directory / "adapter_config.json").is_file():
        raise RecipeError(
            f"{field}: {model.source!r} is an adapter ({directory}). Merge it into its base "
            "(`alignflow merge`), and give the merged model."
        )
    raise RecipeError(
        f"{field}: {model.source!r} is not a model directory ({directory}/config.json is "
        "not there). Give a directory, a Hub id, gguf:PATH, or builtin:freight-base."
    )


def resolve_base_model(model: ModelSource, field: str = "base_model") -> Resolved:
    """Digest and directory of a model; for a Hub id, its revision stands for the digest.

    Of a model in a GGUF file they are the file's.

    Raises:
        RecipeError: As `local_directory` or `gguf_file`, or the Hub has no such model.
    """
    if is_gguf(model.source):
        file = gguf_file(model.source, field)
        return Resolved(sha256_file(file), str(file))
    directory = local_directory(model, field)
    if directory is None:
        return Resolved(hub_commit(model.source, model.revision, "model"), None)
    return Resolved(digest_directory(directory), str(directory))


def gguf_file(source: str, field: str = "base_model") -> Path:
    """Absolute path of the file behind `gguf:PATH`.

    Raises:
        RecipeError: There is no such file, or nothing here that could read it.
    """
    path = Path(source.removeprefix("gguf:")).expanduser().absolute()
    if not path.is_file():
        raise RecipeError(f"{field}: {source!r}: there is no file {path}. Check the name.")
    if importlib.util.find_spec("gguf") is None:
        raise RecipeError(
            f"{field}: {source!r} is read with the package gguf, which is not installed. "
            "`pip install 'alignflow[gguf]'`."
        )
    return path


def resolve_function(source: str, field: str = "rewards") -> Path:
    """Absolute path of the Python file behind `package.module:name` or `path/to/file.py:name`.

    Raises:
        RecipeError: There is no such file or module.
    """
    place = source.rpartition(":")[0]
    if place.endswith(".py"):
        path = Path(place).expanduser().absolute()
        if path.is_file():
            return path
        raise RecipeError(f"{field}: {source!r} is no function: there is no file {path}.")
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise RecipeError(
            f"{field}: {source!r} is no function: no module {place!r} can be imported here. Install it "
            "where stages run, or name a file, `path/to/file.py:name`."
        )
    return Path(spec.origin)


def load_function(source: str, field: str, path: Path | None = None) -> Callable[..., Any]:
    """The function that `package.module:name` or `path/to/file.py:name` names.

    Args:
        source: As a recipe has it.
        field: Of the recipe, for messages.
        path: Where the file lies on this machine; None is where `source` says.

    Raises:
        RecipeError: It cannot be imported.
    """
    place, _, name = source.rpartition(":")
    try:
        if place.endswith(".py"):
            return getattr(_module_at(path or Path(place).expanduser()), name)
        return getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError, OSError, ValueError) as error:
        raise RecipeError(
            f"{field} names {source!r}, which cannot be imported ({type(error).__name__}: {error})."
            " Write `package.module:name`, importable where stages run, or `path/to/file.py:name`."
        ) from error


def _module_at(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"alignflow_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest_adapter(adapter: str) -> str:
    """Digest of the adapter directory that training starts from.

    Raises:
        RecipeError: There is no adapter in it.
    """
    directory = Path(adapter).expanduser().absolute()
    if not (directory / "adapter_config.json").is_file():
        raise RecipeError(
            f"tuning.init_adapter: {adapter!r} is not an adapter directory "
            f"({directory}/adapter_config.json is not there). Give the folder PEFT saved."
        )
    return digest_directory(directory)


def hub_commit(repository: str, revision: str | None, kind: str) -> str:
    """Commit that a Hub revision names now; a full commit is returned as it is.

    Raises:
        AlignflowError: The Hub cannot be asked, or has no such repository or revision.
    """
    if revision and len(revision) == 40 and all(c in "0123456789abcdef" for c in revision):
        return revision
    from huggingface_hub import HfApi

    with asking_hub(f"{repository!r} is no path here, and as a {kind} of the Hub"):
        return str(HfApi().repo_info(repository, revision=revision, repo_type=kind).sha)
