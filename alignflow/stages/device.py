"""Which device a stage will find, and the compute type that suits it, without torch."""

from __future__ import annotations

import os
from pathlib import Path

from alignflow.recipe import ComputeSection, Recipe

CPU_MICRO_BATCH = 16
"""Rows of a forward pass on a CPU, which more rows do not make faster."""
NVIDIA_DEVICE = Path("/dev/nvidiactl")


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is there and not hidden by CUDA_VISIBLE_DEVICES."""
    return NVIDIA_DEVICE.exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")


def available_bytes() -> int:
    """Memory that a new process could take: the kernel's estimate, within the cgroup's limit.

    What the cgroup uses for cached files is given back when it is asked for.

    Raises:
        OSError: The kernel does not say (not Linux).
    """
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        used = int((group / "memory.current").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))
        available = min(available, max(int(text) - used + cached, 0))
    return available


def processors() -> int:
    """Processors that this process may use, by its affinity and its cgroup's quota."""
    allowed = len(os.sched_getaffinity(0))
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, period = limit.read_text().split() if limit.is_file() else ("max", "1")
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def resolve_dtype(recipe: Recipe) -> str:
    """`tuning.dtype`, with `auto` resolved: bfloat16 on a GPU, float32 on a CPU.

    On a CPU without bfloat16 matrix units float32 is the faster of the two at every size measured
    (benchmarks/precision.py).
    """
    if recipe.tuning.dtype != "auto":
        return recipe.tuning.dtype
    return "bfloat16" if has_gpu() else "float32"


def first_micro_batch(compute: ComputeSection, batch_size: int) -> int:
    """Rows per forward pass of a first attempt: as asked for, for `auto` all of the batch on a GPU."""
    if compute.micro_batch_size != "auto":
        return min(compute.micro_batch_size, batch_size)
    return batch_size if has_gpu() else min(batch_size, CPU_MICRO_BATCH)


def largest_divisor(batch_size: int, limit: int, least: int = 1) -> int:
    """The largest micro-batch within a limit that divides the batch; at least `least`, limit or not."""
    divisors = [size for size in range(least, batch_size + 1) if batch_size % size == 0]
    return max((size for size in divisors if size <= limit), default=divisors[0])
