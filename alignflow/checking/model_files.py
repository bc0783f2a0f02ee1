"""A model directory's files: what is there, and what is refused before anything loads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignflow.checking.findings import Finding, error
from alignflow.data import demand_supported, gguf_base_directory, read_gguf
from alignflow.errors import AlignflowError, ArtifactError, RecipeError
from alignflow.models import checkpoint_files
from alignflow.recipe import ModelSource, is_gguf, local_directory, resolve_base_model

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".msgpack")
CONFIGS = ("config.json", "tokenizer_config.json", "adapter_config.json", "generation_config.json")
LARGEST_CONFIG_BYTES = 32 * 1024 * 1024


def model_directory(model: ModelSource, home: Path, field: str = "base_model") -> Path | None:
    """Where a model's files are on this machine; None for a Hub model not in the cache.

    None also for a model in a GGUF file of which no directory was made in the home.

    Raises:
        RecipeError: The builtin name, the directory or the file does not exist, or the file holds
            no model that is read.
    """
    if is_gguf(model.source):
        digest, path = resolve_base_model(model, field)
        place = gguf_base_directory(digest, home)
        if place.is_dir():
            return place
        demand_supported(read_gguf(Path(str(path)), field), field)
        return None
    return local_directory(model, field) or cached_on_hub(model.source, model.revision, field)


def cached_on_hub(repository: str, revision: str | None, field: str = "base_model") -> Path | None:
    """Directory of a Hub model whose weights are all in the local cache, without asking the Hub.

    None where a download has not ended; `prepare` continues it.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(repository, "config.json", revision=revision)
    except ValueError as problem:
        raise RecipeError(
            f"{field}: {repository!r} is neither a directory nor a Hub id: {problem}."
        ) from problem
    if not isinstance(cached, str):
        return None
    try:
        checkpoint_files(Path(cached).parent)
    except (ArtifactError, OSError, ValueError, KeyError):
        return None
    return Path(cached).parent


def refusals(directory: Path, field: str = "base_model") -> list[Finding]:
    """Why a local directory's files are not loaded; empty for a harmless one."""
    return [
        *_links(directory, field),
        *_pickles(directory, field),
        *(problem for name in CONFIGS for problem in _config(directory / name, field)),
    ]


def _links(directory: Path, field: str) -> Iterator[Finding]:
    """Symbolic links that leave the directory; the Hub's cache links to its own blobs."""
    root = directory.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            yield error(
                field,
                f"{path} links to {path.resolve()}, outside the model's directory. Replace the "
                "link by the file.",
            )


def _pickles(directory: Path, field: str) -> Iterator[Finding]:
    unsafe = sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.suffix in PICKLES
    )
    if unsafe:
        more = f" and {len(unsafe) - 1} more" if len(unsafe) > 1 else ""
        yield error(
            field,
            f"{directory} holds {unsafe[0]}{more}: files of this kind can run code when they are "
            "read. Convert weights to safetensors, delete the rest.",
        )


def _config(path: Path, field: str) -> Iterator[Finding]:
    if not path.is_file():
        return
    try:
        config = read_config(path)
    except AlignflowError as problem:
        yield error(field, problem.message.removeprefix("base_model: "))
        return
    for name, value in _entries(config):
        if name in ("auto_map", "auto_mapping") and value:
            yield error(
                field,
                f"{path} asks for the model's own code ({name}: {value!r}), which is never run. "
                "Use a model that the library itself knows.",
            )
        if "attn" in name and isinstance(value, str) and "/" in value:
            yield error(
                field,
                f"{path}: {name} is {value!r}, which would download code from the Hub. Remove it.",
            )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every name and value of a JSON object, nested ones too."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield from item.items()
            pending += item.values()
        elif isinstance(item, list):
            pending += item


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file of a model.

    Raises:
        RecipeError: It is no JSON object, or absurdly large.
    """
    try:
        if path.stat().st_size > LARGEST_CONFIG_BYTES:
            raise RecipeError(f"base_model: {path} has {path.stat().st_size} bytes; get it again.")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise RecipeError(
            f"base_model: {path} cannot be read as JSON ({type(problem).__name__}). Get the file again."
        ) from problem
    if not isinstance(config, dict):
        raise RecipeError(f"base_model: {path} is no JSON object. Get the file again.")
    return config
