"""Bringing the base model here, and recording what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignflow.data.template import ChatTemplate, load_template
from alignflow.errors import DataError, RecipeError
from alignflow.files import atomic_write_json, digest_directory, file_stamps
from alignflow.stages import NamedModel, Prepared, ResolvedModel

MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]


def fetch_base(
    model: NamedModel | ResolvedModel, path: str | None, field: str = "base_model"
) -> Path:
    """Directory of a model: its `path` here; None is a Hub model, downloaded into the Hub's cache.

    Raises:
        RecipeError: It cannot be downloaded.
    """
    if path is not None:
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(model.source, revision=model.digest, allow_patterns=MODEL_FILES)
        )
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{field}: {model.source} at {model.digest} cannot be downloaded "
            f"({type(error).__name__}: {error}). Check the name, the network and HF_TOKEN."
        ) from error


def save_tokenizer(base: Path, template_path: str | None, output: Path) -> Any:
    """Writes the tokenizer with the chat template in force to `output`, and returns it.

    Raises:
        DataError: There is no tokenizer, or the template is not there or does not parse.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"base_model: {base} has no tokenizer that loads: {error}") from error
    template = load_template(base, Path(template_path) if template_path else None)
    tokenizer.chat_template = template.source if template else None
    tokenizer.save_pretrained(str(output))
    return tokenizer


def describe_base(model: ResolvedModel, base: Path, files: Prepared) -> int | None:
    """Writes what the base model is and where; returns the context length."""
    config = json.loads((base / "config.json").read_text())
    text_config = config.get("text_config", config)
    template: ChatTemplate | None = load_template(files.tokenizer)
    context_length = text_config.get("max_position_embeddings")
    record = {
        "source": model.source,
        "revision": model.revision,
        "digest": model.digest,
        "tokenizer_digest": digest_directory(files.tokenizer),
        "chat_template_digest": template.digest if template else None,
        "context_length": context_length,
        "model_type": config.get("model_type"),
        "torch_dtype": config.get("dtype") or config.get("torch_dtype"),
    }
    atomic_write_json(files.base_model, record)
    location = {"path": str(base.absolute()), "files": file_stamps(base)}
    atomic_write_json(files.location, location)
    return context_length
