"""When a run ended, on what machine, and what it took: for the report."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from alignflow.stages import has_gpu

NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


def now() -> str:
    """The time with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def moment(written: str) -> str:
    """A time as people here read it."""
    return f"{datetime.fromisoformat(written).astimezone():%Y-%m-%d %H:%M}"


def machine() -> dict[str, Any]:
    """What kind of machine this is: no name, no address."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu() if has_gpu() else None,
    }


def _gpu() -> str:
    """What the driver calls the first GPU, on which stages run."""
    for path in sorted(NVIDIA_GPUS.glob("*/information")):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Model":
                return value.strip()
    return "GPU"


def cost_of(busy_seconds: float, machine: Mapping[str, Any]) -> dict[str, float]:
    """Hours of the GPU, else of all cores, while stages were at work; what was cached takes none."""
    if machine["gpu"]:
        return {"gpu_hours": round(busy_seconds / 3600, 4)}
    return {"processor_hours": round(busy_seconds * machine["cores"] / 3600, 4)}


def in_words(report: Mapping[str, Any]) -> list[str]:
    """Date, machine and cost, as far as a report has them; those of an older version have none."""
    said: list[str] = []
    if ended := report.get("ended"):
        said.append(moment(ended))
    if found := report.get("machine"):
        cores = f"{found['cores']} core{'s' if found['cores'] != 1 else ''}"
        said.append(f"{found['system']}, {cores}, {found['gpu'] or 'no GPU'}")
    for name, hours in (report.get("cost") or {}).items():
        said.append(f"{hours:.2g} {name.replace('gpu', 'GPU').replace('_', ' ')}")
    return said
