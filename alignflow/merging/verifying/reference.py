"""Base plus adapters, nothing merged: what a merged model is compared with.

Where the model does not fit the memory, one decoder layer is in float32 at a time: parameters are
views of the memory-mapped files, a layer's are widened when its turn comes and given back after it.
What stays in float32 is embedding, head and norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from alignflow.errors import ArtifactError
from alignflow.merging.planning import (
    AdapterStep,
    empty_model,
    names,
    quantized_modules,
    read_adapter,
)
from alignflow.merging.writing import Reader, dequantized
from alignflow.models import (
    FLOATS,
    Located,
    demand_all_keys,
    padded,
    quiet,
    read_tensors,
    with_vocabulary,
)

INSTEAD = "Verify on a machine whose memory holds the model in float32, or merge with --no-verify."
NARROW = (torch.bfloat16, torch.float16)
Wide = Callable[[], Tensor]
PEFT_PREFIX, BASE_LAYER = "base_model.model.", ".base_layer"
NO_BASE_WEIGHTS = ("lora_", "original_module", "modules_to_save", "token_adapter")
"""Parts of the paths of what PEFT puts beside a base's modules."""


def adapted(model: Any, steps: Sequence[AdapterStep]) -> Any:
    """The model with the adapters of all steps active, each delta times its weight; nothing merged.

    Raises:
        ArtifactError: PEFT does not take an adapter on this model.
    """
    members = [member for step in steps for member in step.members]
    for number, (path, weight) in enumerate(members):
        name = f"adapter{number}"
        try:
            with quiet():
                if number == 0:
                    loaded: Any = PeftModel.from_pretrained(model, str(path), adapter_name=name)
                    model = loaded
                outcome = model.load_adapter(str(path), name)
        except (ValueError, KeyError, RuntimeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ArtifactError(
                f"{path}: PEFT cannot load this adapter, so the merge cannot be verified ({first})."
                " Mend the adapter, or merge with --no-verify."
            ) from error
        demand_all_keys(outcome, path, name)
        for module in model.modules():
            if isinstance(module, LoraLayer) and name in module.scaling:
                module.scaling[name] *= weight
    if len(members) > 1:
        model.base_model.set_adapter([f"adapter{number}" for number in range(len(members))])
    return model


@torch.no_grad()
def streamed_logits(model: Any, probes: list[list[int]]) -> list[Tensor]:
    """Logits of each probe, [T, V] in fp32. The probes pass through a layer together."""
    ids, _ = padded(probes, 0, "right")  # padding stands behind what a causal model reads
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return [row[: len(probe)] for row, probe in zip(logits, probes, strict=True)]


def streamed_model(
    directory: Path,
    adapters: Sequence[AdapterStep] = (),
    quantization: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Any:
    """The model with its adapters, each layer in float32 in its turn; the rest is read now.

    `nf4` computes with the values that 4-bit loading leaves of each layer. `changes` is the merged
    model's config, where it has another vocabulary or an untied head.

    Raises:
        ArtifactError: The files hold a parameter in another form than the model, adapters in a
            chain are more than sums, or PEFT does not take one.
    """
    return _streamed(directory, adapters, quantization, changes)[0]


def _streamed(
    directory: Path,
    adapters: Sequence[AdapterStep],
    quantization: str | None,
    changes: Mapping[str, Any] | None,
) -> tuple[Any, list[Turn]]:
    """The model, and its layers' turns."""
    _demand_sums(adapters)
    model, wide = _mapped(directory, quantization)
    turns = [Turn(layer, wide) for layer in _layers(model)]
    model = adapted(with_vocabulary(model, changes or {}), adapters).eval()
    for parameter in model.parameters():
        if id(parameter) not in wide and parameter.dtype in NARROW:  # a module the adapter replaces
            parameter.data = parameter.data.float()
    return model, turns


def merged_values(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each parameter, PEFT's own merge done, the model's adapters with it."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()


def merged_in_turn(
    directory: Path,
    adapters: Sequence[AdapterStep],
    quantization: str | None,
    changes: Mapping[str, Any],
) -> Iterator[tuple[str, Tensor]]:
    """`merged_values` of a model that does not fit the memory, a layer in float32 at a time.

    Parameters that an adapter replaces, or that several modules share, are left out.
    """
    model, turns = _streamed(directory, adapters, quantization, changes)
    paths = {id(module): path for path, module in model.named_modules()}
    inside = {id(each) for turn in turns for each in turn.layer.modules()}
    for turn in turns:
        with turn:
            for module in turn.layer.modules():
                yield from _merged_module(paths[id(module)], module)
    for path, module in model.named_modules():
        if id(module) not in inside:
            yield from _merged_module(path, module)


def _merged_module(path: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters, with what its adapters add."""
    if any(part in path for part in NO_BASE_WEIGHTS) or path.endswith(BASE_LAYER):
        return
    plain = path.removeprefix(PEFT_PREFIX).replace(BASE_LAYER, "")
    if not isinstance(module, LoraLayer):
        for leaf, parameter in module.named_parameters(recurse=False):
            yield f"{plain}.{leaf}" if plain else leaf, parameter.detach()
        return
    layer: Any = module.get_base_layer()
    kept = {leaf: parameter.data for leaf, parameter in layer.named_parameters(recurse=False)}
    for leaf, data in kept.items():
        getattr(layer, leaf).data = data.clone()  # PEFT adds in place
    module.merge()
    for leaf, data in kept.items():
        yield f"{plain}.{leaf}", getattr(layer, leaf).detach()
        getattr(layer, leaf).data = data
    module.merged_adapters.clear()


def _demand_sums(adapters: Sequence[AdapterStep]) -> None:
    """Several can be computed side by side only where every adapter adds low-rank products."""
    if len(adapters) <= 1:
        return
    for path, _ in (member for step in adapters for member in step.members):
        adapter = read_adapter(path)
        magnitudes = any(f.magnitude or f.bias for f in adapter.factors)
        fused = adapter.config.get("target_parameters")
        biases = adapter.config.get("bias", "none") != "none"
        if adapter.replaced or adapter.tokens or magnitudes or fused or biases:
            raise ArtifactError(
                f"{path}: among several adapters one with DoRA, biases, replaced weights or fused "
                f"parameters cannot be verified layer by layer. {INSTEAD}"
            )


def _mapped(directory: Path, quantization: str | None) -> tuple[Any, dict[int, Wide]]:
    """The model on the memory-mapped files, and what computes a layer's parameter in float32, by its id."""
    located = read_tensors(directory)
    model, reader = empty_model(directory), Reader()
    packed = set(quantized_modules(directory)) if quantization else set()
    layers = {id(p) for layer in _layers(model) for p in layer.parameters()}
    state: dict[str, Tensor] = {}
    wide: dict[str, Wide] = {}
    for name, parameter in model.named_parameters():
        tensor, values = values_on_disk(directory, name, tuple(parameter.shape), located, reader)
        if quantized := name.removesuffix(".weight") in packed:
            values = _as_quantized(values)
        in_turn = id(parameter) in layers
        state[name] = tensor if in_turn else values()
        if in_turn and (quantized or tensor.dtype != torch.float32):
            wide[name] = values
    for name, buffer in model.named_buffers():
        if (known := names.find(name, located)) is not None:
            state[name] = reader.tensor(located[known]).to(buffer.dtype, copy=True)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    by_name = dict(model.named_parameters())
    return model, {id(by_name[name]): values for name, values in wide.items()}


def _as_quantized(values: Wide) -> Wide:
    """Values as 4-bit loading would leave them."""
    return lambda: dequantized(values())


def _stacked(experts: list[list[Located]], shape: tuple[int, ...], reader: Reader) -> Tensor:
    """A fused parameter of (experts, out, in), whose rows the files hold expert by expert."""
    whole = torch.empty(shape)
    for matrix, parts in zip(whole, experts, strict=True):
        blocks = matrix.split([part.shape[0] for part in parts])
        for rows, part in zip(blocks, parts, strict=True):
            rows.copy_(reader.tensor(part))
    return whole


def values_on_disk(
    directory: Path,
    name: str,
    shape: tuple[int, ...],
    located: Mapping[str, Located],
    reader: Reader,
) -> tuple[Tensor, Wide]:
    """What stands for a parameter out of its turn, taking no memory, and its float32 values."""
    known = names.find(name, located)
    if known is not None and located[known].shape == shape:
        _demand_float(directory, located[known])
        tensor = reader.tensor(located[known])
        return tensor, tensor.float
    module, _, leaf = name.rpartition(".")
    on_disk = names.experts_on_disk(module, leaf, located) or []
    experts = [[located[part] for part in expert] for expert in on_disk]
    fits = [
        (len(experts), sum(each.shape[0] for each in parts), *part.shape[1:]) == shape
        for parts in experts
        for part in parts
    ]
    if not fits or not all(fits):
        raise ArtifactError(
            f"{directory}: parameter {name} {shape} is not in the files in that form, so the merge "
            f"cannot be verified layer by layer. {INSTEAD}"
        )
    for part in (part for parts in experts for part in parts):
        _demand_float(directory, part)
    stand_in = torch.zeros(1, dtype=torch.bfloat16).expand(shape)
    return stand_in, partial(_stacked, experts, shape, reader)


def _demand_float(directory: Path, located: Located) -> None:
    if located.dtype not in FLOATS:
        raise ArtifactError(f"{directory}: {located.name} has type {located.dtype}. {INSTEAD}")


def _layers(model: Any) -> list[nn.Module]:
    """The decoder's layers: the longest list of modules."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


class Turn:
    """A layer in float32 while it computes, or inside a `with`."""

    def __init__(self, layer: nn.Module, wide: Mapping[int, Wide]) -> None:
        self.layer = layer
        self._wide = wide
        self._narrow: dict[nn.Parameter, Tensor] = {}
        layer.register_forward_pre_hook(lambda _module, _arguments: self.__enter__())
        layer.register_forward_hook(lambda _module, _arguments, _output: self.__exit__())

    def __enter__(self) -> None:
        for parameter in self.layer.parameters():
            if values := self._wide.get(id(parameter)):
                self._narrow[parameter] = parameter.data
                parameter.data = values()

    def __exit__(self, *_exception: object) -> None:
        for parameter, data in self._narrow.items():
            parameter.data = data
        self._narrow.clear()
