"""One step of a merge: an adapter alone, or several by weights."""

from __future__ import annotations

from alignflow.errors import ArtifactError
from alignflow.merging import names
from alignflow.merging.adapter import Adapter, AdapterStep, Factors
from alignflow.merging.deltas import add_delta, layout_of, replace_tensor
from alignflow.merging.draft import Draft
from alignflow.merging.embeddings import (
    apply_embeddings,
    belongs_to_embedding,
    embedding_module,
    head_name,
)
from alignflow.merging.experts import apply_fused
from alignflow.merging.operations import AddDelta


def apply_step(draft: Draft, step: AdapterStep, members: list[tuple[Adapter, float]]) -> None:
    if step.weighted:
        _apply_weighted(draft, members)
        return
    adapter = members[0][0]
    apply_embeddings(draft, adapter)
    for name, source in adapter.replaced.items():
        if not belongs_to_embedding(draft, name):
            replace_tensor(draft, adapter, name, source)
    for factors in adapter.factors:
        if embedding_module(draft, factors.module) is None:
            _apply_factors(draft, adapter, factors)


def _apply_factors(draft: Draft, adapter: Adapter, factors: Factors) -> None:
    name = names.find(f"{factors.module}.weight", draft.tensors)
    if name is None:
        apply_fused(draft, adapter, factors)
        return
    add_delta(draft, adapter, name, factors)


def _apply_weighted(draft: Draft, members: list[tuple[Adapter, float]]) -> None:
    together: dict[str, list[tuple[Factors, float]]] = {}
    for adapter, weight in members:
        if adapter.replaced or adapter.tokens:
            first = (
                next(iter(adapter.replaced.values()), None)
                or next(iter(adapter.tokens.values()))[0]
            )
            raise ArtifactError(
                f"{adapter.path}: {first.name} replaces weights; only low-rank deltas can be "
                "combined by weights. Merge this adapter alone."
            )
        if len(members) > 1 and adapter.config.get("bias", "none") != "none":
            raise ArtifactError(
                f"{adapter.path}: bias is {adapter.config['bias']!r}; only plain low-rank deltas can "
                "be combined by weights. Merge this adapter alone."
            )
        for factors in adapter.factors:
            if factors.magnitude or factors.bias:
                raise ArtifactError(
                    f"{adapter.path}: {factors.module} has DoRA magnitudes or a bias; only plain "
                    "low-rank deltas can be combined by weights. Merge this adapter alone."
                )
            together.setdefault(factors.module, []).append((factors, weight))
    for module, parts in together.items():
        place = embedding_module(draft, module)
        if place and draft.tied:
            draft.untie(head_name(draft, [parts[0][0]] if place == "head" else [], members[0][0]))
        name = names.find(f"{module}.weight", draft.tensors)
        if name is None:
            raise ArtifactError(
                f"{members[0][0].path}: {module} adapts a fused or absent parameter; such deltas "
                "cannot be combined by weights. Merge this adapter alone."
            )
        for factors, _ in parts[1:]:
            layout_of(draft, members[0][0], name, factors)
        layout = layout_of(draft, members[0][0], name, parts[0][0])
        draft.add(name, AddDelta(tuple(parts), layout, weighted=True))
