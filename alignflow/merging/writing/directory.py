"""The directory of a merged model: made ready, and what goes beside the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from alignflow.data import DEQUANTIZED
from alignflow.errors import ArtifactError, DiskSpaceError
from alignflow.files import atomic_write_json, fsync_file
from alignflow.merging.certificate import CERTIFICATE_FILE
from alignflow.merging.planning import MergeOptions, MergePlan
from alignflow.merging.writing.shards import STATE
from alignflow.models import INDEX_FILE

CARRIED = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".vocab", ".bpe"}
"""Suffixes of a model's small files."""
NOT_CARRIED = {
    *(INDEX_FILE, CERTIFICATE_FILE, "config.json", "pytorch_model.bin.index.json"),
    *("trainer_state.json", "adapter_config.json", "base_model.json", "manifest.json"),
    *("all_results.json", "train_results.json", DEQUANTIZED),
}
TOKENIZER_MARK = "tokenizer_config.json"
DISK_MARGIN_BYTES = 64 * 1024 * 1024


def prepare_directory(out: Path, plan: MergePlan, replace: bool) -> None:
    """Makes the directory of the result.

    Raises:
        ArtifactError: Something else stands there, or it is the base itself.
        DiskSpaceError: The file system is too small.
    """
    if out.resolve() == plan.base.resolve():
        raise ArtifactError(f"{out} is the base model itself. Name another directory.")
    if out.is_dir() and any(out.iterdir()) and not (out / STATE).is_dir():
        if not (out / CERTIFICATE_FILE).is_file():
            raise ArtifactError(
                f"{out} is not empty and holds no merge of ours. Name an empty directory."
            )
        if not replace:
            raise ArtifactError(
                f"{out} holds another finished merge, or one whose files were changed. Remove it, "
                "or name another directory."
            )
        shutil.rmtree(out)
    (out / STATE).mkdir(parents=True, exist_ok=True)
    kept = {shard.file for shard in plan.shards}
    for path in out.iterdir():
        if path.is_file() and path.name not in kept:
            path.unlink()
    present = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    free = shutil.disk_usage(out).free
    if free + present < plan.bytes + DISK_MARGIN_BYTES:
        raise DiskSpaceError(
            f"{out}: {free:,} bytes are free, the merged model takes {plan.bytes:,}. Free some, or "
            "name a directory on another file system."
        )


def write_small_files(out: Path, plan: MergePlan, options: MergeOptions) -> None:
    """Config, generation config, tokenizer and chat template, code of the model's own, and index."""
    tokenizer = options.tokenizer or _adapters_tokenizer(plan)
    for directory in (plan.base, *([tokenizer] if tokenizer else [])):
        for path in sorted(directory.iterdir()):
            if path.is_file() and path.suffix in CARRIED and path.name not in NOT_CARRIED:
                fsync_file(shutil.copyfile(path, out / path.name))
    config = json.loads((plan.base / "config.json").read_text()) | dict(plan.config_changes)
    if "dtype" in plan.config_changes and "torch_dtype" in config:
        config["torch_dtype"] = config["dtype"]
    atomic_write_json(out / "config.json", config)
    if len(plan.shards) > 1 or (plan.base / INDEX_FILE).is_file():
        atomic_write_json(out / INDEX_FILE, _index(plan))


def _adapters_tokenizer(plan: MergePlan) -> Path | None:
    paths = (step.path for step in reversed(plan.steps))
    return next((path for path in paths if (path / TOKENIZER_MARK).is_file()), None)


def _index(plan: MergePlan) -> dict[str, Any]:
    weight_map = {tensor.name: shard.file for shard in plan.shards for tensor in shard.tensors}
    parameters = sum(tensor.source.elements for tensor in plan.tensors)
    return {
        "metadata": {"total_size": plan.bytes, "total_parameters": parameters},
        "weight_map": dict(sorted(weight_map.items())),
    }
