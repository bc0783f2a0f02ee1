"""What will be merged into what; whatever cannot be merged is refused by the tensor's name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from alignflow.errors import ArtifactError, RecipeError
from alignflow.files import digest_directory, digest_json, sha256_file
from alignflow.merging.planning import names
from alignflow.merging.planning.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    AdapterStep,
    Factors,
    read_adapter,
    trained_on_nf4,
)
from alignflow.merging.planning.deltas import add_delta, apply_fused, layout_of, replace_tensor
from alignflow.merging.planning.draft import Draft, demand_float
from alignflow.merging.planning.embeddings import apply_embeddings, embedding_place, head_name
from alignflow.merging.planning.merge_plan import (
    AddDelta,
    Dequantized,
    Layout,
    MergeOptions,
    MergePlan,
    TensorPlan,
)
from alignflow.merging.planning.trained_on import check_recorded_base
from alignflow.models import INDEX_FILE, Located, read_checkpoint

PLAN_VERSION = 1


def plan(base: Path, adapters: list[AdapterStep], options: MergeOptions) -> MergePlan:
    """Plans a merge from headers and configs, adapter by adapter; none passes the base through.

    Raises:
        ArtifactError: Base or adapter is damaged, or a tensor cannot be merged: it is named.
        RecipeError: The options contradict each other.
    """
    files = read_checkpoint(base)
    config = model_config(base)
    draft = Draft(base, config, {t.name: t for ts in files.values() for t in ts}, options)
    _demand_unquantized_after_first(adapters, options)
    if options.dequantizes:
        for name in _linear_weights(base, draft.tensors):
            draft.add(name, Dequantized())
    records: list[dict[str, Any]] = []
    header_digest, arithmetic = _header_digest(base, files), _arithmetic(adapters, options)
    for number, step in enumerate(adapters):
        members = [(read_adapter(path), weight) for path, weight in step.members]
        for adapter, _ in members:
            check_recorded_base(adapter, base, records, options, header_digest, arithmetic)
        records += [_record(adapter, weight, number) for adapter, weight in members]
        if number:
            draft.round_all()
        _apply_step(draft, step, members)
    shards, changes = draft.shards(files), draft.config_changes()
    listed = [[t.name, t.work, t.dtype, repr(t.operations)] for s in shards for t in s.tensors]
    beside = digest_directory(options.tokenizer) if options.tokenizer else None
    identity = [PLAN_VERSION, _stamps(base, files), records, listed, changes, beside]
    return MergePlan(
        base=base,
        steps=tuple(adapters),
        adapters=tuple(records),
        shards=shards,
        config_changes=changes,
        arithmetic=arithmetic,
        digest=digest_json(identity),
        header_digest=header_digest,
    )


def check_base(base: Path, targets: Collection[str], options: MergeOptions) -> MergePlan:
    """Plans the merge of nothing, and looks at what adapters would change.

    `targets` are the last names of the layers that will have adapters.

    Raises:
        ArtifactError: The base is damaged or quantized, or a layer could not be merged: it is named.
    """
    planned = plan(base, [], MergeOptions(dtype=options.dtype))
    for tensor in planned.tensors:
        if tensor.name.removesuffix(".weight").rpartition(".")[2] in targets:
            demand_float(tensor, "Take the unquantized model.")
    kind = model_config(base).get("model_type")
    if options.dequantizes and kind in names.CONV1D_TYPES:
        raise ArtifactError(
            f"{base}: a {kind} has Conv1D layers, whose NF4 values are not reproduced here. Set "
            "merge.qlora_base to original, or tuning.mode to lora."
        )
    return planned


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


def _demand_unquantized_after_first(adapters: list[AdapterStep], options: MergeOptions) -> None:
    if options.dequantizes and len(adapters) > 1:
        raise RecipeError(
            "An adapter trained on NF4 is followed by another. Merge them one at a time: the "
            "second was trained on the first merge's result, quantized anew."
        )
    for path in (path for step in adapters[1:] for path, _ in step.members if trained_on_nf4(path)):
        raise RecipeError(
            f"The adapter in {path} was trained with QLoRA on the preceding result, "
            "quantized. Merge one at a time."
        )


def _linear_weights(base: Path, tensors: Mapping[str, TensorPlan]) -> list[str]:
    """Weights of linear layers but the head, which 4-bit loading quantizes. Imports Transformers."""
    from alignflow.merging.planning.quantized import quantized_modules

    weights = []
    for module in quantized_modules(base):
        name = names.find(f"{module}.weight", tensors)
        if name is None:
            raise ArtifactError(
                f"{base}: no tensor {module}.weight in the files, so its 4-bit values cannot be "
                "reproduced. Merge with --qlora-base original."
            )
        weights.append(name)
    return weights


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
    if options.dequantizes:
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


def _stamps(base: Path, files: Collection[str]) -> dict[str, list[int]]:
    """Bytes and modification times in ns of all that the plan was read from."""
    small = (name for name in ("config.json", INDEX_FILE) if (base / name).is_file())
    stats = {name: (base / name).stat() for name in (*files, *small)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _apply_step(draft: Draft, step: AdapterStep, members: list[tuple[Adapter, float]]) -> None:
    """One adapter alone, or several by weights."""
    if step.combine or step.weight != 1.0:
        _apply_weighted(draft, members)
        return
    adapter = members[0][0]
    apply_embeddings(draft, adapter)
    for name, source in adapter.replaced.items():
        if embedding_place(draft, name) is None:
            replace_tensor(draft, adapter, name, source)
    for factors in adapter.factors:
        if embedding_place(draft, f"{factors.module}.weight") is None:
            name = names.find(f"{factors.module}.weight", draft.tensors)
            if name is None:
                apply_fused(draft, adapter, factors)
            else:
                add_delta(draft, adapter, name, factors)


def _apply_weighted(draft: Draft, members: list[tuple[Adapter, float]]) -> None:
    together: dict[str, list[tuple[Factors, float]]] = {}
    for adapter, weight in members:
        _demand_plain_deltas(adapter, combined=len(members) > 1)
        for factors in adapter.factors:
            together.setdefault(factors.module, []).append((factors, weight))
    first = members[0][0]
    for module, parts in together.items():
        place = embedding_place(draft, f"{module}.weight")
        if place and draft.tied:
            draft.untie(head_name(draft, [parts[0][0]] if place == "head" else [], first))
        name = names.find(f"{module}.weight", draft.tensors)
        if name is None:
            raise ArtifactError(
                f"{first.path}: {module} adapts a fused or absent parameter; such deltas "
                "cannot be combined by weights. Merge this adapter alone."
            )
        layouts: list[Layout] = [layout_of(draft, first, name, factors) for factors, _ in parts]
        draft.add(name, AddDelta(tuple(parts), layouts[0], weighted=True))


def _demand_plain_deltas(adapter: Adapter, *, combined: bool) -> None:
    replacing = [*adapter.replaced.values(), *(rows for rows, _ in adapter.tokens.values())]
    special = next((f.module for f in adapter.factors if f.magnitude or f.bias), None)
    bias = adapter.config.get("bias", "none")
    if replacing:
        refused = f"{replacing[0].name} replaces weights; only low-rank deltas"
    elif combined and bias != "none":
        refused = f"bias is {bias!r}; only plain low-rank deltas"
    elif special:
        refused = f"{special} has DoRA magnitudes or a bias; only plain low-rank deltas"
    else:
        return
    raise ArtifactError(
        f"{adapter.path}: {refused} can be combined by weights. Merge this adapter alone."
    )
