"""Logits of a model that does not fit the memory: one decoder layer in float32 at a time.

Parameters are views of the memory-mapped files; a layer's are widened to float32 when its turn
comes and given back after it. What stays in float32 is embedding, head and norms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from alignflow.errors import ArtifactError
from alignflow.merging import names
from alignflow.merging.adapter import AdapterStep
from alignflow.merging.arithmetic import dequantized
from alignflow.merging.headers import FLOATS, read_checkpoint
from alignflow.merging.modules import empty_model, quantized_modules
from alignflow.merging.reader import Reader
from alignflow.modeling import quiet


@torch.no_grad()
def streamed_logits(
    directory: Path,
    adapters: list[AdapterStep],
    probes: list[list[int]],
    quantization: str | None = None,
) -> list[Tensor]:
    """Logits of each probe, [T, V] in fp32.

    Args:
        directory: Of the model.
        adapters: None or one.
        probes: Token ids.
        quantization: `nf4` computes with the values that 4-bit loading leaves of each layer.

    Raises:
        ArtifactError: The files hold a parameter in another form than the model (fused experts), or
            there are several adapters; verify such a merge on a machine with more memory.
    """
    if len(adapters) > 1 or any(step.weighted for step in adapters):
        raise ArtifactError(
            f"{directory}: several adapters cannot be verified layer by layer. Verify on a machine "
            "whose memory holds the model in float32, or merge with --no-verify."
        )
    model = mapped_model(directory)
    packed = set(quantized_modules(directory)) if quantization else set()
    weights = {id(m.weight) for name, m in model.named_modules() if name in packed}
    for layer in _layers(model):
        _widen_in_turn(layer, weights)
    if adapters:
        with quiet():
            model = PeftModel.from_pretrained(model, str(adapters[0].path))
    model.eval()
    return [
        model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float() for ids in probes
    ]


def mapped_model(directory: Path) -> Any:
    """The model with its layers' parameters on the memory-mapped files."""
    located = {t.name: t for ts in read_checkpoint(directory).values() for t in ts}
    model = empty_model(directory)
    reader = Reader()
    layers = {id(p) for layer in _layers(model) for p in layer.parameters()}
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        found = names.find(name, located)
        if found is None or located[found].shape != tuple(parameter.shape):
            raise ArtifactError(
                f"{directory}: parameter {name} {tuple(parameter.shape)} is not in the files in "
                "that form, so the merge cannot be verified layer by layer. Verify on a machine "
                "whose memory holds the model in float32, or merge with --no-verify."
            )
        if located[found].dtype not in FLOATS:
            raise ArtifactError(f"{directory}: {found} has type {located[found].dtype}.")
        tensor = reader.tensor(located[found])
        state[name] = tensor if id(parameter) in layers else tensor.float()
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _layers(model: Any) -> list[nn.Module]:
    """The decoder's layers: the longest list of modules."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def _widen_in_turn(layer: nn.Module, packed: set[int]) -> None:
    """Float32 while a layer computes; weights in `packed` as 4-bit loading would leave them."""
    narrow: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, _arguments: Any) -> None:
        for parameter in module.parameters():
            kept = parameter.data
            if id(parameter) in packed:
                narrow[parameter] = kept
                parameter.data = dequantized(kept.float())
            elif kept.dtype in (torch.bfloat16, torch.float16):
                narrow[parameter] = kept
                parameter.data = kept.float()

    def narrow_again(_module: nn.Module, _arguments: Any, _output: Any) -> None:
        for parameter, data in narrow.items():
            parameter.data = data
        narrow.clear()

    layer.register_forward_pre_hook(widen)
    layer.register_forward_hook(narrow_again)
