"""Low-rank deltas and replaced tensors: which tensor of the base each one changes, and how it lies."""

from __future__ import annotations

from alignflow.errors import ArtifactError
from alignflow.merging import names
from alignflow.merging.adapter import Adapter, Factors
from alignflow.merging.draft import Draft
from alignflow.merging.operations import AddBias, AddDelta, AddDora, Layout
from alignflow.models.headers import Located


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
    if factors.embedding:
        layout: Layout = "embedding"
        expected = (inputs, outputs)
    elif names.is_conv1d(draft.config.get("model_type"), factors.module):
        layout, expected = "conv1d", (inputs, outputs)
    else:
        layout, expected = "linear", (outputs, inputs)
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
    found = names.find(name, draft.tensors)
    if found is None or draft.tensors[found].shape != source.shape:
        shape = draft.tensors[found].shape if found else "no such tensor"
        raise ArtifactError(
            f"{adapter.path}: {source.name} has shape {source.shape}, the base has {shape} for "
            f"{name}. The adapter belongs to another model or another head (a reward model's "
            "`score` is not part of a language model)."
        )
    draft.put(found, source)
