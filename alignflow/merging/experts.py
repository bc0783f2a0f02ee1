"""Adapters on fused parameters: the experts of a mixture, fused in memory and often not on disk."""

from __future__ import annotations

from dataclasses import replace

from alignflow.errors import ArtifactError
from alignflow.merging import names
from alignflow.merging.adapter import Adapter, Factors, with_rank
from alignflow.merging.draft import Draft
from alignflow.merging.operations import AddFused


def apply_fused(draft: Draft, adapter: Adapter, factors: Factors) -> None:
    module = factors.module
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    targets = adapter.config.get("target_parameters") or []
    leaves = sorted({target.rpartition(".")[2] for target in targets})
    shapes = []
    for leaf in leaves:
        if applied := _fused_parameter(draft, adapter, factors, module, leaf):
            return
        shapes.append(f"{leaf} {applied}")
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
        begin = 0
        for name, height in zip(parts, heights, strict=True):
            rows = (begin, begin + height)
            draft.add(name, AddFused(ranked, len(experts), True, number, rows))
            begin += height
    return True


def _ranked(adapter: Adapter, factors: Factors, module: str, leaf: str, experts: int) -> Factors:
    if factors.a.shape[0] % experts or factors.magnitude or factors.bias:
        raise ArtifactError(
            f"{adapter.path}: {factors.a.name} has {factors.a.shape[0]} rows for {experts} experts "
            f"of {module}.{leaf}; a whole rank per expert, without DoRA or bias, can be merged."
        )
    named = replace(factors, module=module)
    return with_rank(named, adapter.config, factors.a.shape[0] // experts)
