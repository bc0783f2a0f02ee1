"""What will be merged into what, from headers alone: nothing is loaded, no torch is imported.

Whatever cannot be merged is refused here, before the first weight is read, by the tensor's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignflow.errors import ArtifactError, RecipeError
from alignflow.files import digest_directory, digest_json, sha256_file
from alignflow.merging import names
from alignflow.merging.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    AdapterStep,
    read_adapter,
    trained_on_nf4,
)
from alignflow.merging.draft import Draft
from alignflow.merging.lineage import check_lineage
from alignflow.merging.merge_plan import MergePlan, ShardPlan
from alignflow.merging.operations import TensorPlan
from alignflow.merging.options import MergeOptions
from alignflow.merging.steps import apply_step
from alignflow.models.headers import INDEX_FILE, Located, read_checkpoint

PLAN_VERSION = 1


def plan(base: Path, adapters: list[AdapterStep], options: MergeOptions) -> MergePlan:
    """Plans a merge from headers and configs.

    Args:
        base: Directory of the base model.
        adapters: In the order they are merged; none passes the base through.
        options: How to merge.

    Raises:
        ArtifactError: Base or adapter is damaged, or a tensor cannot be merged: it is named.
        RecipeError: The options contradict each other.
    """
    files = read_checkpoint(base)
    config = model_config(base)
    draft = Draft(base, config, {t.name: t for ts in files.values() for t in ts}, options)
    records: list[dict[str, Any]] = []
    if options.quantization and options.qlora_base == "dequantized":
        if any(step.weighted for step in adapters[1:]) or len(adapters) > 1:
            raise RecipeError(
                "An adapter trained on NF4 is followed by another. Merge them one at a time: the "
                "second was trained on the first merge's result, quantized anew."
            )
        draft.dequantize(linear_weights(base, draft.tensors))
    _demand_unquantized_after_first(adapters)
    header_digest, arithmetic = _header_digest(base, files), _arithmetic(adapters, options)
    for number, step in enumerate(adapters):
        members = [(read_adapter(path), weight) for path, weight in step.members]
        for adapter, _ in members:
            check_lineage(adapter, base, records, options, header_digest, arithmetic)
        records += [_record(adapter, weight, number) for adapter, weight in members]
        if number:
            draft.round_all()
        apply_step(draft, step, members)
    shards = draft.shards(files)
    return MergePlan(
        base=base,
        steps=tuple(adapters),
        adapters=tuple(records),
        shards=shards,
        config_changes=draft.config_changes(),
        arithmetic=arithmetic,
        digest=_digest(base, files, records, shards, draft.config_changes(), options.tokenizer),
        header_digest=header_digest,
        notes=tuple(draft.notes),
    )


def _demand_unquantized_after_first(adapters: list[AdapterStep]) -> None:
    for step in adapters[1:]:
        for path, _ in step.members:
            if trained_on_nf4(path):
                raise RecipeError(
                    f"The adapter in {path} was trained with QLoRA on the preceding result, "
                    "quantized. Merge one at a time."
                )


def linear_weights(base: Path, tensors: Mapping[str, TensorPlan]) -> list[str]:
    """Weights of linear layers but the head, which 4-bit loading quantizes. Imports Transformers."""
    from alignflow.merging.modules import quantized_modules

    found = []
    for module in quantized_modules(base):
        name = names.find(f"{module}.weight", tensors)
        if name is None:
            raise ArtifactError(
                f"{base}: no tensor {module}.weight in the files, so its 4-bit values cannot be "
                "reproduced. Merge with --qlora-base original."
            )
        found.append(name)
    return found


def model_config(base: Path) -> Mapping[str, Any]:
    """The base's config.

    Raises:
        ArtifactError: There is none, or it says that the weights are quantized.
    """
    file = base / "config.json"
    if not file.is_file():
        raise ArtifactError(f"{base} holds no model (no config.json). Name a model's directory.")
    config = json.loads(file.read_text())
    if quantized := config.get("quantization_config"):
        raise ArtifactError(
            f"{file}: the base is quantized ({quantized.get('quant_method', 'unknown method')}). "
            "Merging into quantized weights ruins them: name the unquantized base, with "
            "--qlora-base dequantized for an adapter trained on NF4."
        )
    return config


def _record(adapter: Adapter, weight: float, step: int) -> dict[str, Any]:
    return {
        "path": str(adapter.path),
        "sha256": sha256_file(adapter.path / WEIGHTS_FILE),
        "config_sha256": sha256_file(adapter.path / CONFIG_FILE),
        "weight": weight,
        "step": step,
    }


def _arithmetic(adapters: list[AdapterStep], options: MergeOptions) -> str:
    if not adapters:
        return "none: the weights pass through"
    if options.quantization and options.qlora_base == "dequantized":
        return "NF4 weights dequantized to float32, adapter added in float32, cast last"
    if options.quantization:
        origin = "original weights (not the NF4 the adapter was trained on)"
    else:
        origin = "base weights"
    if options.dtype == "auto":
        return f"{origin}, delta in float32 added in the weight's own type, as PEFT does"
    return f"{origin} in float32, adapter added in float32, cast last"


def _header_digest(base: Path, files: Mapping[str, list[Located]]) -> str:
    listed = [[t.name, t.dtype, list(t.shape)] for ts in files.values() for t in ts]
    return digest_json([sorted(listed), sha256_file(base / "config.json")])


def _digest(
    base: Path,
    files: Mapping[str, list[Located]],
    records: list[dict[str, Any]],
    shards: tuple[ShardPlan, ...],
    changes: Mapping[str, Any],
    tokenizer: Path | None,
) -> str:
    stamps = {
        name: [(stat := (base / name).stat()).st_size, stat.st_mtime_ns]
        for name in (*files, *(n for n in ("config.json", INDEX_FILE) if (base / n).is_file()))
    }
    listed = [[t.name, t.work, t.dtype, repr(t.operations)] for s in shards for t in s.tensors]
    beside = digest_directory(tokenizer) if tokenizer else None
    return digest_json([PLAN_VERSION, stamps, records, listed, dict(changes), beside])
