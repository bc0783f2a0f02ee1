"""Which device a stage will find, and the compute type that suits it, without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignflow.recipe import Recipe

CPU_MICRO_BATCH = 16
"""Rows of a forward pass on a CPU, which more rows do not make faster."""
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


def first_micro_batch(compute: Mapping[str, Any], batch_size: int) -> int:
    """Rows per forward pass of a first attempt: as asked for, for `auto` all of the batch on a GPU."""
    asked = compute.get("micro_batch_size", "auto")
    if asked != "auto":
        return min(int(asked), batch_size)
    return batch_size if has_gpu() else min(batch_size, CPU_MICRO_BATCH)


def largest_divisor(batch_size: int, limit: int) -> int:
    """The largest micro-batch within a limit that divides the batch; at least 1."""
    return next(size for size in range(max(limit, 1), 0, -1) if batch_size % size == 0)
