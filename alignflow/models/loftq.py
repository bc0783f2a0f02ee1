"""LoftQ: an adapter that starts from what quantization lost, so that training starts from the base.

    scaling * B @ A ~ W - dequantized(NF4(W))        (Li et al. 2023, one iteration on a fixed base)

PEFT's own needs a GPU and leaves the scaling out. More iterations would quantize the base anew, which
the other adapters stand on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from alignflow.errors import RecipeError
from alignflow.models.headers import Located, read_tensors

OVERSAMPLING = 2
POWER_ITERATIONS = 4


@torch.no_grad()
def start_from_quantization_error(model: Any, directory: Path, adapter: str = "default") -> None:
    """Fills a new adapter of a PEFT model whose base was loaded from `directory` in 4 bits.

    Raises:
        RecipeError: A quantized weight is not in the files under its name.
    """
    from bitsandbytes.functional import dequantize_4bit
    from peft.tuners.lora import Linear4bit

    tensors = read_tensors(directory)
    layers: list[tuple[str, Any]] = [
        (name, module)
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, Linear4bit) and adapter in module.lora_A
    ]
    for name, module in layers:
        weight = module.get_base_layer().weight
        lost = _read(tensors, f"{name}.weight", directory).to(weight.device, torch.float32)
        lost -= dequantize_4bit(weight.data, weight.quant_state).to(torch.float32)
        b, a = low_rank(lost / module.scaling[adapter], module.r[adapter])
        module.lora_A[adapter].weight.copy_(a)
        module.lora_B[adapter].weight.copy_(b)


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(B [rows, rank], A [rank, columns]) whose product is about the best of that rank.

    A randomized decomposition: the whole one takes minutes for each layer of a large model.
    """
    wide = min(OVERSAMPLING * rank, *matrix.shape)
    left, values, right = torch.svd_lowrank(matrix, q=wide, niter=POWER_ITERATIONS)
    kept = min(rank, wide)
    root = values[:kept].sqrt()
    b, a = left[:, :kept] * root, (right[:, :kept] * root).T
    if kept < rank:  # a rank above the matrix's own: the rest of the adapter stays zero
        b = torch.nn.functional.pad(b, (0, rank - kept))
        a = torch.nn.functional.pad(a, (0, 0, 0, rank - kept))
    return b, a


def _read(tensors: dict[str, Located], name: str, directory: Path) -> Tensor:
    """A tensor; files of a headless model leave the first part of the name out."""
    stored = tensors.get(name) or tensors.get(name.partition(".")[2])
    if stored is None:
        raise RecipeError(
            f"tuning.initialization: loftq needs the weight {name}, which {directory} does not hold "
            "under that name. Use another initialization with this model."
        )
    with safe_open(str(stored.path), framework="pt") as file:
        return file.get_tensor(stored.name)
