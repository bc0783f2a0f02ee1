"""What this machine can run and why not. Torch is asked in a child: a broken one is a finding."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from alignflow.checking import (
    GIB,
    LIBRARIES_BYTES,
    NF4_BYTES,
    gib,
    memory_available,
    nearest_directory,
)
from alignflow.settings import Settings, without_password
from alignflow.stages import processors

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
TORCH_SECONDS = 120
LEAST_DISK_BYTES = 2 * GIB
SIZES = {"0.6B": 0.6e9, "8B": 8.2e9, "32B": 32.8e9, "72B": 72.7e9}
ROOM_BYTES = 2 * GIB
"""For activations of a short row, chosen, not tuned."""
PORTS = {4200: "Prefect server", 5000: "MLflow server"}
PROBE = """
import json, warnings
warnings.simplefilter("ignore")
seen = {}
try:
    import torch
    seen = {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(),
             "gpus": [{"name": p.name, "memory_bytes": p.total_memory, "capability": f"{p.major}.{p.minor}"}
                      for i in range(torch.cuda.device_count()) for p in [torch.cuda.get_device_properties(i)]]}
    import bitsandbytes.functional as F
    device = "cuda" if seen["gpus"] else "cpu"
    packed, state = F.quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4")
    back = F.dequantize_4bit(packed, state)
    seen["nf4"] = bool(torch.allclose(back, torch.ones_like(back)))
except Exception as error:
    seen["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(seen))
"""

State = Literal["good", "note", "bad"]


class Fact(NamedTuple):
    """One thing about the machine."""

    state: State
    name: str
    text: str


def examine(home: Path) -> list[Fact]:
    """Everything, what is wrong first asked for by name in `bad` facts."""
    torch = probe_torch()
    return [
        *_python_facts(),
        *_library_facts(),
        *_torch_facts(torch),
        *_size_facts(torch),
        *_disk_facts(home),
        *_server_facts(),
        *_hub_facts(),
    ]


def probe_torch() -> dict[str, Any]:
    """Torch, its GPUs and whether NF4 works, asked in a child."""
    try:
        command = [sys.executable, "-c", PROBE]
        child = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_SECONDS)
        return json.loads(child.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"importing torch took more than {TORCH_SECONDS} s"}
    except (ValueError, IndexError):
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"importing torch ended with {child.returncode}: {last}"}


def _python_facts() -> Iterator[Fact]:
    good = (3, 11) <= sys.version_info < (3, 13)
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    text += "" if good else "; alignflow needs 3.11 or 3.12"
    yield Fact("good" if good else "bad", "python", text)
    cores = processors()
    memory = memory_available()
    text = f"{cores} CPU cores; {gib(memory) if memory else 'unknown'} memory free"
    yield Fact("good", "cores", text)


def _library_facts() -> Iterator[Fact]:
    """Installed versions against what alignflow allows, and against the lock."""
    locked = _locked_versions()
    differing = []
    for requirement in map(Requirement, requires("alignflow") or []):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            text = f"is not installed; alignflow needs {requirement.name}{requirement.specifier}"
            yield Fact("bad", requirement.name, text)
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            text = f"{have} is installed; alignflow needs {requirement.specifier}"
            yield Fact("bad", requirement.name, text)
        lock = locked.get(requirement.name.lower())
        if lock and have.partition("+")[0] not in SpecifierSet(f"=={lock}"):
            differing.append(f"{requirement.name} {have} (lock {lock})")
    if differing:
        yield Fact("note", "lock", "differs from constraints.txt: " + ", ".join(differing))
    elif locked:
        yield Fact("good", "lock", "libraries are those of constraints.txt")


def _locked_versions() -> dict[str, str]:
    if not CONSTRAINTS.is_file():
        return {}
    pairs = (line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    return {name.strip().lower(): lock.strip() for name, lock in pairs}


def _torch_facts(torch: dict[str, Any]) -> Iterator[Fact]:
    if "torch" in torch:
        yield Fact("good", "torch", f"{torch['torch']}, CUDA {torch['cuda'] or 'none'}")
    if "error" in torch:
        yield Fact("bad", "torch", torch["error"])
    for gpu in torch.get("gpus", []):
        text = f"{gpu['name']}, {gib(gpu['memory_bytes'])}, capability {gpu['capability']}"
        yield Fact("good", "gpu", text)
    if "torch" in torch and not torch.get("gpus"):
        yield Fact("note", "gpu", "none, training is on the CPU" + _why_no_gpu(torch))
    if "nf4" in torch:
        works = bool(torch["nf4"])
        text = "NF4 works, so qlora does" if works else "NF4 gives wrong numbers; do not use qlora"
        yield Fact("good" if works else "bad", "bitsandbytes", text)


def _why_no_gpu(torch: dict[str, Any]) -> str:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "; CUDA_VISIBLE_DEVICES hides them"
    if not Path("/dev/nvidiactl").exists():
        return "; there is no NVIDIA driver"
    return (
        "; torch is built without CUDA"
        if not torch["cuda"]
        else "; torch finds the driver unusable"
    )


def _size_facts(torch: dict[str, Any]) -> Iterator[Fact]:
    """Which sizes of model fit, by tuning mode."""
    gpus = torch.get("gpus", [])
    have = max((gpu["memory_bytes"] for gpu in gpus), default=memory_available() or 0)
    value = 2 if gpus else 4
    for mode, per_parameter in (("lora", value), ("qlora", NF4_BYTES * 1.15), ("full", 16)):
        fits = [
            name
            for name, parameters in SIZES.items()
            if parameters * per_parameter + LIBRARIES_BYTES + ROOM_BYTES <= have
        ]
        text = f"models of up to {fits[-1]} parameters" if fits else "only models below 0.6B"
        too_large = next((name for name in SIZES if name not in fits), None)
        if too_large:
            need = SIZES[too_large] * per_parameter + LIBRARIES_BYTES + ROOM_BYTES
            text += f" ({too_large} needs about {gib(need)}, there are {gib(have)})"
        yield Fact("good" if fits else "note", mode, text)


def _disk_facts(home: Path) -> Iterator[Fact]:
    place = nearest_directory(home)
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK)
    enough = free >= LEAST_DISK_BYTES
    text = f"{home}: {gib(free)} free"
    if not writable:
        text += f"; {place} cannot be written to"
    elif not enough:
        text += f"; runs need at least {gib(LEAST_DISK_BYTES)}"
    yield Fact("good" if writable and enough else "bad", "home", text)


def _server_facts() -> Iterator[Fact]:
    settings = Settings()
    for name, address, alone in (
        ("prefect", settings.prefect_api_url, "a temporary server for each run"),
        ("mlflow", settings.mlflow_tracking_uri, "SQLite in the home"),
    ):
        text = f"server {without_password(address)}" if address else alone
        yield Fact("good", name, text)
    for port, what in PORTS.items():
        if _is_taken(port):
            text = f"{port} is in use (a {what}, or another program that one would collide with)"
            yield Fact("note", "port", text)


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _hub_facts() -> Iterator[Fact]:
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    token = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN, so no gated models"
    text = f"{token}{'; HF_HUB_OFFLINE is on, so nothing is downloaded' if offline else ''}"
    yield Fact("note" if offline else "good", "hub", text)
