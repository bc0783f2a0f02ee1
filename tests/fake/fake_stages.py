"""Stages that train nothing and fail in every way, for tests of what runs stages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from alignflow.errors import BY_EXIT_CODE
from alignflow.events import EventWriter
from alignflow.stage import RowAccount, StageResult, StageSpec


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Does what `params["fake"]` says, else writes what the following stages look for."""
    orders = Path(os.environ.get("FAKE_ORDERS", "/nonexistent")) / spec.stage
    order = spec.params.get("fake") or (orders.read_text().strip() if orders.exists() else "")
    action, _, argument = order.partition(":")
    if action:
        ACTIONS[action](argument, spec, work, events)
    sys.stdout.write("output that belongs in the log\n")
    return write_output(spec, work, events)


def write_output(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    output = work / "output"
    micro = spec.compute.get("micro_batch_size", "auto")
    for step in range(1, 4):
        events.progress(step, 3)
        events.metrics(step, {"loss": 1.0 / step})
    folders = {
        "prepare": ["tokenizer", "sft", "preferences", "evaluation", "general"],
        "merge": ["model"],
        "sft": ["adapter"],
        "dpo": ["adapter"],
        "reward": ["adapter"],
    }
    for folder in folders.get(spec.stage, ["tables"]):
        (output / folder).mkdir()
        (output / folder / "content.txt").write_text(f"{spec.stage} {spec.key}")
    if spec.stage == "prepare":
        (output / "base_model.json").write_text("{}")
    if spec.stage == "merge":
        (output / "model" / "merge_certificate.json").write_text('{"passed": true}')
    return StageResult(
        metrics={"accuracy": 0.5},
        rows=RowAccount(read=3, trained=3),
        params={"trainable_params": 10, "lora_target_modules_resolved": ["q_proj"]},
        details={"micro_batch_size": micro, "pid": os.getpid()},
    )


def fail(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    raise BY_EXIT_CODE[int(argument)](f"asked to fail with {argument}")


def fail_once(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    marker = work / "failed"
    if not marker.exists():
        marker.touch()
        fail(argument, spec, work, events)


def break_down(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    if argument == "enospc":
        raise OSError(28, "No space left on device")
    if argument == "memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    raise ValueError("something\nunexpected")


def kill_itself(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    os.kill(os.getpid(), getattr(signal, argument))
    time.sleep(30)


def sleep(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    """Sleeps, with a grandchild that sleeps too; their ids stand in pids.txt."""
    grandchild = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({argument})"])
    (work / "pids.txt").write_text(f"{os.getpid()} {grandchild.pid}")
    time.sleep(float(argument))


def matmul(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    """Times products with the threads it was given."""
    import torch

    a = torch.randn(1500, 1500)
    a @ a
    started = time.monotonic()
    for _ in range(10):
        a @ a
    events.message(f"{torch.get_num_threads()} threads: {time.monotonic() - started:.3f} s")


ACTIONS = {
    "fail": fail,
    "fail_once": fail_once,
    "break": break_down,
    "kill": kill_itself,
    "sleep": sleep,
    "matmul": matmul,
}
