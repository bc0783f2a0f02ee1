"""Which device a stage will find, and the compute type that suits it, without torch."""

from __future__ import annotations

import os
from pathlib import Path

from alignflow.recipe import Recipe

NVIDIA_DEVICE = Path("/dev/nvidiactl")


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is there and not hidden by CUDA_VISIBLE_DEVICES."""
    return NVIDIA_DEVICE.exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")


def resolve_dtype(recipe: Recipe) -> str:
    """`tuning.dtype`, with `auto` resolved: bfloat16 on a GPU, float32 on a CPU.

    On a CPU without bfloat16 matrix units float32 is the faster of the two at every size measured
    (benchmarks/precision.py).
    """
    if recipe.tuning.dtype != "auto":
        return recipe.tuning.dtype
    return "bfloat16" if has_gpu() else "float32"
