"""The model that a GGUF file holds as a directory that everything else can read, made once."""

from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignflow.data.gguf import SPLITS_DIGITS, GgufHeader, demand_supported, read_gguf
from alignflow.errors import RecipeError
from alignflow.files import (
    atomic_write_json,
    fsync_directory,
    fsync_file,
    held,
    regular_files,
    sha256_file,
)

DEQUANTIZED = "dequantized.json"
"""In the directory: which file it was made of, and by what."""


def gguf_base_directory(digest: str, home: Path) -> Path:
    """Where the model of a GGUF file of this sha256 is, or would be."""
    return home / "bases" / digest


def dequantized_from(directory: Path) -> str | None:
    """What most weights of a directory were made of, such as Q4_1; None where it is no such one."""
    record = directory / DEQUANTIZED
    return json.loads(record.read_text())["dequantized_from"] if record.is_file() else None


def gguf_base(file: Path, digest: str, home: Path, field: str = "base_model") -> Path:
    """Directory of the model in a GGUF file of this sha256; made where it is not there yet.

    Its weights are float32, which holds every dequantized value as it is. While another process
    makes it, this one waits.

    Raises:
        RecipeError: The file is none, or holds a model that would not be read right.
    """
    place = gguf_base_directory(digest, home)
    if place.is_dir():
        return place
    header = read_gguf(file, field)
    demand_supported(header, field)
    if sha256_file(file) != digest:
        raise RecipeError(f"{field}: {file} has changed since the run began. Run again.")
    making = place.with_name(f"making-{digest}")
    with held(place.with_name(f"{digest}.lock")):
        if not place.is_dir():
            shutil.rmtree(making, ignore_errors=True)
            _write(header, making, field)
            record = {
                "file": file.name,
                "sha256": digest,
                "dequantized_from": header.quantization,
                "transformers": version("transformers"),
                "gguf": version("gguf"),
            }
            atomic_write_json(making / DEQUANTIZED, record)
            for path in regular_files(making):
                fsync_file(path)
            os.rename(making, place)
            fsync_directory(place.parent)
    return place


def _write(header: GgufHeader, output: Path, field: str) -> None:
    """Model and tokenizer, as Transformers reads them, with what it leaves out."""
    import torch
    import transformers

    kind: Any = transformers.AutoModelForCausalLM
    place, named = str(header.path.parent), {"gguf_file": header.path.name}
    try:
        tokenizer = read_tokenizer(header)
        model, loading = kind.from_pretrained(
            place, **named, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except (ValueError, KeyError, IndexError, NotImplementedError, RuntimeError) as error:
        raise RecipeError(
            f"{field}: Transformers cannot read {header.path} ({type(error).__name__}: {error}). "
            "Name the original model."
        ) from error
    taken = sum(parameter.numel() for parameter in model.parameters())
    absent = sorted(loading["missing_keys"])
    if absent or taken != header.parameters:
        raise RecipeError(
            f"{field}: {header.path} has {header.parameters:,} parameters, of which Transformers' "
            f"{model.config.model_type} takes {taken:,}"
            + (f" and lacks {', '.join(absent[:3])}" if absent else "")
            + ". Name the original model."
        )
    model.hf_quantizer = None  # what is saved is dense
    del model.config.quantization_config
    model.save_pretrained(str(output))
    tokenizer.save_pretrained(str(output))


def read_tokenizer(header: GgufHeader) -> Any:
    """The tokenizer of a file, which splits text as the model's own does."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    kind: Any = AutoTokenizer
    tokenizer = kind.from_pretrained(str(header.path.parent), gguf_file=header.path.name)
    if header.metadata.get("tokenizer.ggml.pre") in SPLITS_DIGITS:
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    return tokenizer
