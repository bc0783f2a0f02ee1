"""Whether all of an adapter finds its place in a model, and the vocabulary that it needs there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from alignflow.errors import ArtifactError
from alignflow.models.headers import Located, read_header, same_bytes
from alignflow.stages import ADAPTER_PREFIX, ADAPTER_WEIGHTS

WITHIN = ("", "base_layer.", "token_adapter.base_layer.")
"""Where PEFT keeps the weight of a layer that it wraps."""
NAMED = 3
"""Tensors that a message names."""


def with_vocabulary(model: Any, changes: Mapping[str, Any]) -> Any:
    """A base with the `vocab_size` and the untied head that a config, or a change of one, has."""
    rows, size = model.get_input_embeddings().weight.shape[0], changes.get("vocab_size")
    if size and size not in (model.config.vocab_size, rows):
        model.resize_token_embeddings(size, mean_resizing=False)
    if changes.get("tie_word_embeddings") is False and model.config.tie_word_embeddings:
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    return model


def fit_vocabulary(model: Any, adapter: Path) -> bool:
    """Gives a base the rows of the embeddings that an adapter's file holds, and parts them as it does.

    Returns:
        Whether the file replaces embeddings beside what the adapter itself trains, so that they must
        be saved with it.

    Raises:
        ArtifactError: It is not there, or of embedding and head, which are not tied, it resizes one.
    """
    file = adapter / ADAPTER_WEIGHTS
    if not file.is_file():
        raise ArtifactError(
            f"{adapter} holds no {ADAPTER_WEIGHTS}. Save the adapter with safetensors (PEFT's default)."
        )
    tensors = {tensor.name: tensor for tensor in read_header(file)}
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    held = [_held(model, layer, tensors) for layer in layers if layer is not None]
    saved = [tensor for tensor in held if tensor is not None]
    if not saved:
        return False
    sizes = {tensor.shape[0] for tensor in saved}
    tied = len(held) < 2 or bool(model.config.tie_word_embeddings)
    resizes = sizes != {layers[0].weight.shape[0]}
    if len(sizes) > 1 or (resizes and not tied and len(saved) < len(held)):
        raise ArtifactError(
            f"{file}: {saved[0].name} resizes the vocabulary from {layers[0].weight.shape[0]} to "
            f"{saved[0].shape[0]} rows, but embedding and head are not both resized alike. Save the "
            "adapter with save_embedding_layers=True."
        )
    parted = len(saved) > 1 and not same_bytes(*saved)
    changes = {"vocab_size": sizes.pop(), "tie_word_embeddings": False if parted else None}
    with_vocabulary(model, changes)
    trained = json.loads((adapter / "adapter_config.json").read_text()).get("modules_to_save") or ()
    return any(not {*tensor.name.split(".")} & {*trained} for tensor in saved)


def _held(model: Any, layer: nn.Module, tensors: Mapping[str, Located]) -> Located | None:
    """What an adapter's file has in the place of a layer's weight."""
    name = next((name for name, module in model.named_modules() if module is layer), "")
    places = [f"{ADAPTER_PREFIX}{name}.{within}weight" for within in WITHIN]
    return next((tensors[place] for place in places if place in tensors), None)


def demand_all_keys(outcome: Any, adapter: Path, name: str = "default") -> None:
    """Refuses an adapter of which a tensor found no place, or a place found no tensor.

    `outcome` is what PEFT says after it has put them into the adapter `name` of a model, names of
    other architectures and of wrapped modules translated. A copy of a tensor that found its place
    is passed over: PEFT writes some where it saves embeddings that it trains.

    Raises:
        ArtifactError: There are such tensors or places.
    """
    tensors = {tensor.name: tensor for tensor in read_header(adapter / ADAPTER_WEIGHTS)}
    left = [key.replace(f".{name}", "") for key in outcome.unexpected_keys]
    placed = [tensor for key, tensor in tensors.items() if key not in left]
    lost = [
        key
        for key in left
        if key not in tensors or not any(same_bytes(tensors[key], one) for one in placed)
    ]
    empty = [
        key.replace(f".{name}", "")
        for key in outcome.missing_keys
        if "lora_" in key and f".{name}" in key
    ]
    if not lost and not empty:
        return
    said = [
        f"{len(keys)} {what}, such as {', '.join(keys[:NAMED])}"
        for keys, what in (
            (lost, "of its tensors have no place in it"),
            (empty, "of its places have no tensor"),
        )
        if keys
    ]
    raise ArtifactError(
        f"The adapter in {adapter} does not fit the model: {'; '.join(said)}. Use an adapter of this "
        f"base, saved by PEFT's save_pretrained: its names begin with {ADAPTER_PREFIX!r} and go on "
        "with the base's own."
    )
