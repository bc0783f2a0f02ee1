"""The parent's side: runs one stage in a child process and says what became of it.

Attempts, and how often memory ran out, are read from the stage's event file and so survive the
flow's own death. Whatever ends the wait (a result, a stall, Ctrl-C) ends the child's group too.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from alignflow.errors import AlignflowError, DiskSpaceError, OutOfMemory, StageError, error_for
from alignflow.files import atomic_write_text
from alignflow.machine import full_disk
from alignflow.recipe import STAGES, TRAINING_STAGES
from alignflow.stages.artifacts import (
    Artifact,
    artifact_directory,
    find,
    read_manifest,
    work_directory,
)
from alignflow.stages.device import first_micro_batch, largest_divisor
from alignflow.stages.environment import stage_environment
from alignflow.stages.events import EVENTS_FILE, EventTail, EventWriter, read_events, written_bytes
from alignflow.stages.forkserver import Forkserver, ForkserverGone
from alignflow.stages.process import LOG_FILE, SPEC_FILE, start_module
from alignflow.stages.spec import StageSpec

POLL_SECONDS = 0.05
TERM_GRACE_SECONDS = 0.5
CGROUP_EVENTS = (
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
    Path("/proc/vmstat"),
)

EventHandler = Callable[[Mapping[str, Any]], None]


class Child(Protocol):
    """A stage's process, leader of its own group."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...


def run_stage(
    spec: StageSpec, *, on_event: EventHandler | None = None, server: Forkserver | None = None
) -> Artifact:
    """The artifact of `spec`: found if it is finished, else made by one attempt in a child.

    Args:
        spec: What to do.
        on_event: Called with each event of the attempt, in this thread.
        server: Where to fork the child; None, or one that cannot serve, starts a fresh process.

    Raises:
        AlignflowError: The attempt failed; its `retried` says whether another may help.
    """
    home = Path(spec.home)
    if finished := find(home, spec.stage, spec.key):
        return finished
    work = work_directory(home, spec.stage, spec.key)
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = read_events(work / EVENTS_FILE)
    attempt = next_attempt(before)
    plan = with_first_threads(with_smaller_micro_batch(spec, before), before)
    atomic_write_text(work / SPEC_FILE, plan.model_dump_json(indent=2))
    oom_kills = count_oom_kills()
    code = _watched(plan, work, attempt, on_event or (lambda _: None), server)
    if code == 0:
        return read_manifest(artifact_directory(home, spec.stage, spec.key))
    if finished := find(home, spec.stage, spec.key):
        return finished  # published, then killed: what counts is the artifact
    raise _failure(spec, work, attempt, code, out_of_memory=count_oom_kills() > oom_kills)


def next_attempt(events: list[dict[str, Any]]) -> int:
    """Number of the attempt after those in `events`, from 1."""
    return 1 + max((event["attempt"] for event in events), default=0)


def with_first_threads(spec: StageSpec, events: list[dict[str, Any]]) -> StageSpec:
    """`spec` with the threads of its first attempt: another number would make other bits."""
    first = next((event["count"] for event in events if event["kind"] == "threads"), None)
    if first is None:
        return spec
    compute = spec.compute.model_copy(update={"threads": first})
    return spec.model_copy(update={"compute": compute})


def with_smaller_micro_batch(spec: StageSpec, events: list[dict[str, Any]]) -> StageSpec:
    """`spec` with its micro-batch halved once for each time memory ran out.

    The effective batch stays: the largest divisor of it that is no larger than the halved size, and
    no smaller than the method needs.
    """
    halvings = sum(
        event["kind"] == "error" and event.get("exit_code") == OutOfMemory.exit_code
        for event in events
    )
    section = spec.section
    batch = section.get("batch_size")
    if not halvings or not batch:
        return spec
    batch //= section.get("num_mini_batches", 1)  # PPO's optimizer step takes one of them
    halved = first_micro_batch(spec.compute, batch) >> halvings
    row = TRAINING_STAGES.get(spec.stage)
    smaller = largest_divisor(batch, halved, row.least_micro_batch if row else 1)
    compute = spec.compute.model_copy(update={"micro_batch_size": smaller})
    return spec.model_copy(update={"compute": compute})


def _watched(
    spec: StageSpec, work: Path, attempt: int, on_event: EventHandler, server: Forkserver | None
) -> int:
    """Runs the child to its end, hands on its events and keeps the limits; its exit code."""
    finished = artifact_directory(Path(spec.home), spec.stage, spec.key) / EVENTS_FILE
    seen = len(read_events(work / EVENTS_FILE))
    tail = EventTail(work / EVENTS_FILE, written_bytes(work / EVENTS_FILE))
    child = start_child(spec.stage, work, attempt, server)
    started = heard = time.monotonic()
    try:
        while (code := child.poll()) is None:
            for event in tail.poll():
                seen += 1
                heard = time.monotonic()
                on_event(event)
            _demand_in_time(spec, started, heard)
            time.sleep(POLL_SECONDS)
    finally:
        kill_group(child)
    for event in tail.poll() if code else read_events(finished)[seen:]:
        on_event(event)
    return code


def _demand_in_time(spec: StageSpec, started: float, heard: float) -> None:
    """Refuses to wait on for a stage that is silent, or runs, for longer than it may."""
    for since, field, did in (
        (heard, "stall_seconds", "made no progress"),
        (started, "timeout_seconds", "ran"),
    ):
        limit = getattr(spec.compute, field)
        if time.monotonic() - since > limit:
            raise StageError(
                f"{spec.stage} {did} for {limit:g} s and was stopped. "
                f"Raise compute.{field} if it is only slow."
            )


def start_child(stage: str, work: Path, attempt: int, server: Forkserver | None = None) -> Child:
    """Starts a stage's process: forked where the server can, else fresh."""
    environment = stage_environment(stage)
    if server is not None and not STAGES[stage].online:  # the server's HF_* variables say offline
        with suppress(ForkserverGone):
            return server.fork(work, attempt, environment)
    arguments = (work, attempt, os.getpid())
    return start_module("alignflow.stages.process", arguments, environment, work / LOG_FILE)


def kill_group(child: Child) -> None:
    """Ends a child's whole group, what it started included, and waits for the child."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.poll() is None:  # killed before it led a group
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + TERM_GRACE_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def _failure(
    spec: StageSpec, work: Path, attempt: int, code: int, *, out_of_memory: bool
) -> AlignflowError:
    """What an exit code means; a death by signal is written into the event file for the child."""
    if code > 0:
        texts = [f"{spec.stage} ended with code {code} (log: {work / LOG_FILE})"]
        if code == DiskSpaceError.exit_code:  # its own words may not have found room either
            texts = [full_disk(f"under {work}", texts[0]).message]
        texts += [
            event["text"]
            for event in read_events(work / EVENTS_FILE)
            if event["kind"] == "error" and event["attempt"] == attempt
        ]
        return error_for(code, texts[-1])
    name = signal.Signals(-code).name
    error = (
        OutOfMemory(f"{spec.stage} was killed by {name}: the machine ran out of memory.")
        if out_of_memory
        else StageError(f"{spec.stage} was killed by {name} (log: {work / LOG_FILE}).")
    )
    record_failure(work, attempt, error)
    return error


def record_failure(work: Path, attempt: int, error: AlignflowError) -> None:
    """Appends the error of a child that could not do so itself."""
    with suppress(OSError):
        events = EventWriter(work / EVENTS_FILE, attempt)
        events.write("error", exit_code=error.exit_code, text=error.message)
        events.close()


def count_oom_kills() -> int:
    """Processes killed for memory so far, as the cgroup and the kernel count them."""
    total = 0
    for path in CGROUP_EVENTS:
        with suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    total += int(value)
    return total
