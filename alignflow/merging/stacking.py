"""Base plus adapters as loaded models: what a merged model is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from alignflow.errors import ArtifactError
from alignflow.merging.adapter import AdapterStep
from alignflow.models.loading import quiet


def adapted(model: Any, steps: Sequence[AdapterStep]) -> Any:
    """The model with the adapters of all steps active, each delta times its weight; nothing merged.

    Raises:
        ArtifactError: PEFT does not take an adapter on this model.
    """
    names: list[str] = []
    for path, weight in (member for step in steps for member in step.members):
        names.append(f"adapter{len(names)}")
        try:
            with quiet():
                model = _loaded(model, path, names[-1])
        except (ValueError, KeyError, RuntimeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ArtifactError(
                f"{path}: PEFT cannot load this adapter, so the merge cannot be verified ({first})."
                " Mend the adapter, or merge with --no-verify."
            ) from error
        for module in model.modules():
            if isinstance(module, LoraLayer) and names[-1] in module.scaling:
                module.scaling[names[-1]] *= weight
    if len(names) > 1:
        model.base_model.set_adapter(names)
    return model


def _loaded(model: Any, path: Path, name: str) -> Any:
    if not isinstance(model, PeftModel):
        return PeftModel.from_pretrained(model, str(path), adapter_name=name)
    model.load_adapter(str(path), name)
    return model


def as_merged(model: Any, merged: Mapping[str, Any]) -> Any:
    """A base with the vocabulary and the untied head that a merged model's config has.

    Args:
        model: The base, loaded.
        merged: The merged model's config, or what it changes of the base's.
    """
    rows, size = model.get_input_embeddings().weight.shape[0], merged.get("vocab_size")
    if size and size not in (model.config.vocab_size, rows):
        with quiet():
            model.resize_token_embeddings(size, mean_resizing=False)
    if merged.get("tie_word_embeddings") is False and model.config.tie_word_embeddings:
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    return model
