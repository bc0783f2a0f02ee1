"""Low-rank deltas and replaced tensors: which tensor of the base each one changes, and how it lies.

Experts of a mixture are fused in memory and often not on disk.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise

from alignflow.errors import ArtifactError
from alignflow.merging.planning import names
from alignflow.merging.planning.adapter import Adapter, Factors, scaling_of
from alignflow.merging.planning.draft import Draft
from alignflow.merging.planning.merge_plan import AddBias, AddDelta, AddDora, AddFused, Layout
from alignflow.models import Located


def add_delta(draft: Draft, adapter: Adapter, name: str, factors: Factors) -> None:
    layout = layout_of(draft, adapter, name, factors)
    if factors.magnitude is not None:
        draft.add(name, AddDora(factors, layout))
    else:
        draft.add(name, AddDelta(((factors, 1.0),), layout))
    if factors.bias is not None:
        bias = names.find(f"{factors.module}.bias", draft.tensors)
        if bias is None:
            raise ArtifactError(
                f"{adapter.path}: {factors.bias.name} is the bias of a LoRA factor, but the base "
                f"has no {factors.module}.bias to add it to. Train with lora_bias=False."
            )
        draft.add(bias, AddBias(factors))


def layout_of(draft: Draft, adapter: Adapter, name: str, factors: Factors) -> Layout:
    shape = draft.tensors[name].shape
    inputs, outputs = factors.a.shape[1], factors.b.shape[0]
    is_conv1d = names.is_conv1d(draft.config.get("model_type"), factors.module)
    layout: Layout = "embedding" if factors.embedding else "conv1d" if is_conv1d else "linear"
    expected = (outputs, inputs) if layout == "linear" else (inputs, outputs)
    if shape != expected:
        raise ArtifactError(
            f"{adapter.path}: the factors of {factors.module} make a delta of shape {expected}, "
            f"the base's {name} has {shape}. The adapter belongs to another model, or to one with "
            "a resized vocabulary."
        )
    if layout == "linear" and adapter.config.get("fan_in_fan_out") and draft.config.get("auto_map"):
        raise ArtifactError(
            f"{adapter.path}: fan_in_fan_out is set and {draft.base} has code of its own, so it is "
            f"not known how {name} lies. Merge it with PEFT's merge_and_unload."
        )
    return layout


def replace_tensor(draft: Draft, adapter: Adapter, name: str, source: Located) -> None:
    known = names.find(name, draft.tensors)
    if known is None or draft.tensors[known].shape != source.shape:
        shape = draft.tensors[known].shape if known else "no such tensor"
        raise ArtifactError(
            f"{adapter.path}: {source.name} has shape {source.shape}, the base has {shape} for "
            f"{name}. The adapter belongs to another model or another head (a reward model's "
            "`score` is not part of a language model)."
        )
    draft.put(known, source)


def apply_fused(draft: Draft, adapter: Adapter, factors: Factors) -> None:
    module = factors.module
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    targets = adapter.config.get("target_parameters") or []
    leaves = sorted({target.rpartition(".")[2] for target in targets})
    for leaf in leaves:
        if _fused_parameter(draft, adapter, factors, module, leaf):
            return
    raise ArtifactError(
        f"{adapter.path}: {factors.a.name} with shape {factors.a.shape} adapts {factors.module}, "
        f"for which {draft.base} has no weight of that shape"
        + (f" (target_parameters {', '.join(leaves)})" if leaves else "")
        + ". The adapter belongs to another model, or to a layer that cannot be merged here."
    )


def _fused_parameter(
    draft: Draft, adapter: Adapter, factors: Factors, module: str, leaf: str
) -> bool:
    """Adds a fused parameter's delta where the shapes fit; whether they did."""
    inputs, outputs = factors.a.shape[1], factors.b.shape[0]
    whole = names.find(f"{module}.{leaf}", draft.tensors)
    if whole is not None:
        shape = draft.tensors[whole].shape
        if len(shape) != 3 or {shape[1], shape[2]} != {inputs, outputs}:
            return False
        if inputs == outputs:
            raise ArtifactError(
                f"{adapter.path}: {whole} is square {shape}, so it is not known which side the "
                "factors belong to. Merge it with PEFT's merge_and_unload."
            )
        ranked = _ranked(adapter, factors, module, leaf, shape[0])
        draft.add(whole, AddFused(ranked, shape[0], swapped=shape[1] == outputs))
        return True
    experts = names.experts_on_disk(module, leaf, draft.tensors)
    if experts is None:
        return False
    heights = [draft.tensors[name].shape[0] for name in experts[0]]
    if sum(heights) != outputs or draft.tensors[experts[0][0]].shape[1] != inputs:
        return False
    ranked = _ranked(adapter, factors, module, leaf, len(experts))
    for number, parts in enumerate(experts):
        for name, rows in zip(parts, pairwise(accumulate(heights, initial=0)), strict=True):
            draft.add(name, AddFused(ranked, len(experts), True, number, rows))
    return True


def _ranked(adapter: Adapter, factors: Factors, module: str, leaf: str, experts: int) -> Factors:
    """The factors of a fused parameter, whose A stacks the ranks of all experts."""
    rank, rest = divmod(factors.a.shape[0], experts)
    if rest or factors.magnitude or factors.bias:
        raise ArtifactError(
            f"{adapter.path}: {factors.a.name} has {factors.a.shape[0]} rows for {experts} experts "
            f"of {module}.{leaf}; a whole rank per expert, without DoRA or bias, can be merged."
        )
    scaling = scaling_of(adapter.config, f"{module}.{leaf}", rank)
    return replace(factors, module=module, scaling=scaling)
