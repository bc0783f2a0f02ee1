"""Stages that train nothing and fail in every way, for tests of what runs stages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from alignflow.errors import BY_EXIT_CODE
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import RowAccount, StageResult, StageSpec

ORDERS = Path(os.environ.get("FAKE_ORDERS", "/nonexistent"))


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Does what `params["fake"]` says, else writes what the following stages look for."""
    order = order_of(spec)
    if ORDERS.exists():
        with (ORDERS / "executions.txt").open("a") as file:
            file.write(f"{spec.stage}\n")
    action, _, argument = order.partition(":")
    if action:
        ACTIONS[action](argument, spec, work, events)
    sys.stdout.write("output that belongs in the log\n")
    return write_output(spec, work, events)


def order_of(spec: StageSpec) -> str:
    """`action:argument`, from the spec or from the file named after the stage."""
    path = ORDERS / spec.stage
    return spec.params.get("fake") or (path.read_text().strip() if path.exists() else "")


def write_output(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    output = work / "output"
    micro = spec.compute.micro_batch_size
    for step in range(resumed_step(work) + 1, 4):
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
        (output / folder).mkdir(exist_ok=True)
        (output / folder / "content.txt").write_text(f"{spec.stage} {spec.key}")
    if spec.stage == "prepare":
        (output / "base_model.json").write_text("{}")
        (output / "dropped.json").write_text("{}")
    if spec.stage in ("sft", "dpo"):
        (output / "adapter" / "quality.txt").write_text(ordered_quality(spec.stage))
    details: dict[str, Any] = {}
    if spec.stage == "evaluate":
        (output / "scores.json").write_text(json.dumps(scores(spec)))
        if (ORDERS / "answers").exists():
            write_answers(scores(spec), output)
        details = evaluated(scores(spec))
    if spec.stage == "judge":
        judge(spec, output)
    if spec.stage == "merge" and "uncertified" not in order_of(spec):
        (output / "model" / "merge_certificate.json").write_text('{"status": "passed"}')
    return StageResult(
        metrics={"accuracy": 0.5},
        rows=RowAccount(read=3, trained=3),
        params={
            "trainable_params": 10,
            "total_params": 1000,
            "trainable_percent": 1.0,
            "lora_target_modules_resolved": ["layers.v_proj", "layers.q_proj"],
        },
        details={"micro_batch_size": micro, "pid": os.getpid(), **details},
    )


def ordered_quality(stage: str) -> str:
    """Share of prompts that the trained model gets right: of dpo as ordered, of sft a half."""
    path = ORDERS / "quality"
    return path.read_text() if stage == "dpo" and path.exists() else "0.5"


def scores(spec: StageSpec) -> dict[str, Any]:
    """Of each model that is judged: right on so many of 200 prompts, a better one on more of them."""
    found = {}
    for role in spec.params["section"]["models"]:
        quality, digest = 0.3, "base"
        if role != "base":
            adapter = spec.input(role) / "adapter"
            quality, digest = float((adapter / "quality.txt").read_text()), spec.inputs[role].digest
        right = {f"p{n}": float((n * 37) % 200 < 200 * quality) for n in range(200)}
        found[role] = {"model": digest, "metrics": {"exact_match": right}}
    return found


def write_answers(found: dict[str, Any], output: Path) -> None:
    """A response of each model to each prompt that says whether it is right."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "model": role,
            "prompt_index": place,
            "prompt_name": name,
            "question": f"Is {name} right?",
            "conversation": name,
            "target": "right: 1.0",
            "greedy": f"right: {right}",
            "greedy_correct": right,
        }
        for role, scored in found.items()
        for place, (name, right) in enumerate(scored["metrics"]["exact_match"].items())
    ]
    pq.write_table(pa.Table.from_pylist(rows), output / "responses.parquet")


def evaluated(found: dict[str, Any]) -> dict[str, Any]:
    """Figures of each model, intervals and a sample, as stage `evaluate` has them."""
    values = {role: list(one["metrics"]["exact_match"].values()) for role, one in found.items()}
    means = {role: sum(own) / len(own) for role, own in values.items()}
    sample = {
        "question": "Is p60 right?",
        "target": "right: 1.0",
        **{role: f"right: {own[60]}" for role, own in values.items()},
        "scores": {role: own[60] for role, own in values.items()},
    }
    return {
        "evaluation": {role: {"accuracy": mean} for role, mean in means.items()},
        "intervals": {role: {"accuracy": [m - 0.05, m + 0.05]} for role, m in means.items()},
        "samples": [sample],
    }


def judge(spec: StageSpec, output: Path) -> None:
    """A model that prefers the response that says it is right."""
    from alignflow.gate.judge import JudgementCache, read_questions
    from alignflow.stages.layout import JUDGEMENTS_FILE

    cache = JudgementCache(output / JUDGEMENTS_FILE)
    for asked in read_questions(spec):
        answer = "first" if asked[1] == "right: 1.0" else "second"
        cache.keep(spec.params["name"], asked, answer)


def resumed_step(work: Path) -> int:
    checkpoint = work / "checkpoints" / "step.txt"
    return int(checkpoint.read_text()) if checkpoint.exists() else 0


def fail(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    raise BY_EXIT_CODE[int(argument)](f"asked to fail with {argument}")


def fail_once(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    marker = work / "failed"
    if not marker.exists():
        marker.touch()
        fail(argument, spec, work, events)


def fail_twice(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    if (work / "failed").exists():
        (work / "failed").rename(work / "failed-twice")
        fail(argument, spec, work, events)
    if not (work / "failed-twice").exists():
        fail_once(argument, spec, work, events)


def break_down(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    if argument == "enospc":
        raise OSError(28, "No space left on device")
    if argument == "memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    raise ValueError("something\nunexpected")


def fill(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    """Fills the disk: by its own `output`, which fails, or `beside` it, so that what follows does."""
    folder = work / "output" if argument == "output" else Path(spec.home)
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(65536)):
                pass
        except OSError:
            if argument == "output":
                raise


def kill_itself(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    os.kill(os.getpid(), getattr(signal, argument))
    time.sleep(30)


def sleep(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    """Sleeps, with a grandchild that sleeps too; their ids stand in pids.txt."""
    grandchild = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({argument})"])
    (work / "pids.txt").write_text(f"{os.getpid()} {grandchild.pid}")
    time.sleep(float(argument))


def sleep_once(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    """Saves a checkpoint of step 2, then sleeps; an attempt that finds the checkpoint goes on."""
    if resumed_step(work):
        events.message(f"resumed from step {resumed_step(work)}")
        return
    events.metrics(1, {"loss": 1.0})
    events.metrics(2, {"loss": 0.5})
    (work / "checkpoints").mkdir()
    (work / "checkpoints" / "step.txt").write_text("2")
    sleep(argument, spec, work, events)


def surroundings(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    """Says what the process finds itself in."""
    umask = os.umask(0)
    os.umask(umask)
    seen = {
        "umask": umask,
        "stdin": os.readlink("/proc/self/fd/0"),
        "stdout": os.readlink("/proc/self/fd/1"),
        "group": os.getpgrp() == os.getpid(),
        "environment": dict(os.environ),
    }
    events.message(json.dumps(seen))


def background(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    """Leaves a process of its own running."""
    left = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({argument})"])
    (Path(spec.home) / "background.txt").write_text(str(left.pid))


def uncertified(argument: str, spec: StageSpec, work: Path, events: EventWriter) -> None:
    """Writes a certificate that did not pass, or none."""
    (work / "output" / "model").mkdir()
    if argument:
        (work / "output" / "model" / "merge_certificate.json").write_text(argument)


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
    "fail_twice": fail_twice,
    "break": break_down,
    "kill": kill_itself,
    "sleep": sleep,
    "sleep_once": sleep_once,
    "surroundings": surroundings,
    "uncertified": uncertified,
    "background": background,
    "matmul": matmul,
    "fill": fill,
}
