"""The child's side: one stage in one process, from spec.json to the published artifact.

Started by `alignflow.stages.launch`, afresh (`python -m alignflow.stages.process WORK ATTEMPT PID`)
or out of the forkserver. All that leaves it is `events.jsonl`, the artifact, `log.txt` and an exit
code.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from alignflow.errors import AlignflowError, Preempted, StageError
from alignflow.machine import causes_of, fault_of, first_line
from alignflow.recipe import STAGES
from alignflow.stages.artifacts import locked, publish
from alignflow.stages.events import EVENTS_FILE, EventWriter
from alignflow.stages.spec import StageResult, StageSpec

TEST_STAGES = "ALIGNFLOW_TEST_STAGES"
SPEC_FILE = "spec.json"
LOG_FILE = "log.txt"
PR_SET_PDEATHSIG = 1

StageFunction = Callable[[StageSpec, Path, EventWriter], StageResult]


def load_stage(stage: str) -> StageFunction:
    """The function behind a stage's name; the tests replace entries by an environment variable."""
    replaced = json.loads(os.environ.get(TEST_STAGES, "{}"))
    module, _, name = (replaced.get(stage) or STAGES[stage].entry).partition(":")
    return getattr(importlib.import_module(module), name)


def start_module(
    module: str,
    arguments: Sequence[object],
    environment: Mapping[str, str],
    log: Path,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Runs a module of ours as the head of a session of its own; what it prints goes to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            env=dict(environment),
            start_new_session=True,
        )


def run_and_exit(work: Path, attempt: int, flow_pid: int) -> None:
    """Runs the stage in this process, which ends here: the exit code is the outcome."""
    isolate(work / LOG_FILE)
    die_with(flow_pid)
    code = run_to_exit_code(work, attempt)
    with suppress(OSError):  # a full disk takes the log with it; the exit code still tells
        sys.stdout.flush()
        sys.stderr.flush()
    # Not sys.exit: what is published stays published, whatever a library does at its teardown.
    os._exit(code)


def isolate(log: Path) -> None:
    """Own process group, private files, no stdin, output into `log`, SIGTERM as preemption."""
    if os.getpgrp() != os.getpid():
        os.setsid()
    os.umask(0o077)
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptors = [
        os.open(os.devnull, os.O_RDONLY),
        os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
    ]
    for source, target in zip([*descriptors, descriptors[1]], (0, 1, 2), strict=True):
        os.dup2(source, target)
    for descriptor in descriptors:
        if descriptor > 2:
            os.close(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _preempted)


def _preempted(_signal: int, _frame: Any) -> None:
    raise Preempted(
        "The machine asked the stage to stop (SIGTERM). It resumes from its last checkpoint."
    )


def die_with(pid: int) -> None:
    """Has this process's group killed once process `pid`, or this one, is gone.

    A guard outside the group waits for either, so what the stage started ends too, even where the
    interpreter hangs. The kernel's parent-death signal is the second line: it reaches this process
    only, and follows whoever forked it and not `pid`.
    """
    stage = os.getpid()
    if os.fork() == 0:
        _guard(stage, pid)
    end_with_parent()


def end_with_parent() -> None:
    """Has the kernel kill this process when the one that forked it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _guard(group: int, pid: int) -> NoReturn:
    """Never returns: a guard must not become a second stage."""
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wait_for_death(pid, group)
        os.killpg(group, signal.SIGKILL)
    finally:
        os._exit(0)


def wait_for_death(*pids: int) -> None:
    """Returns when one of the processes no longer runs."""
    descriptors: list[int] = []
    try:
        descriptors += [os.pidfd_open(pid) for pid in pids]
    except ProcessLookupError:
        return
    except OSError:  # a kernel without pidfds
        while all(_runs(pid) for pid in pids):
            time.sleep(0.2)
        return
    select.select(descriptors, [], [])
    for descriptor in descriptors:
        os.close(descriptor)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def run_to_exit_code(work: Path, attempt: int) -> int:
    """Runs and publishes the stage described in `work`; an error becomes an event and a code."""
    events = EventWriter(work / EVENTS_FILE, attempt)
    try:
        with locked(work):
            run_and_publish(work, attempt, events)
        return 0
    except BaseException as error:
        with suppress(OSError):
            traceback.print_exc()
        failure = as_alignflow_error(error, work / LOG_FILE)
        _record(events, failure)
        return failure.exit_code


def run_and_publish(work: Path, attempt: int, events: EventWriter) -> None:
    """The stage itself, then the artifact."""
    started = time.monotonic()
    spec = StageSpec.model_validate_json((work / SPEC_FILE).read_text())
    events.write("started", pid=os.getpid(), compute=spec.compute.model_dump(mode="json"))
    stage = load_stage(spec.stage)
    events.write("threads", count=set_threads(spec.compute.threads))
    (work / "output").mkdir(exist_ok=True)
    result = stage(spec, work, events)
    details = {**result.details, "peak_memory_bytes": peak_memory_bytes()}
    result = result.model_copy(update={"details": details})
    seconds = time.monotonic() - started
    events.write("finished", seconds=seconds)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is being published is finished
    publish(spec, result, seconds, attempt)


def peak_memory_bytes() -> dict[str, int]:
    """The most memory held at once: by this process, and by torch on the GPU if it used one."""
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


def set_threads(threads: int | None) -> int:
    """Sets torch's threads where the stage has loaded torch; None leaves all cores. Returns them."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")
    if torch is None:
        return threads or os.cpu_count() or 1
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def _record(events: EventWriter, failure: AlignflowError) -> None:
    with suppress(OSError):  # a full disk takes the event with it; the exit code still tells
        events.write("error", exit_code=failure.exit_code, text=failure.message)


def as_alignflow_error(error: BaseException, log: Path) -> AlignflowError:
    """The error itself, or the one of ours that its cause stands for."""
    ours = next((link for link in causes_of(error) if isinstance(link, AlignflowError)), None)
    fault = ours or fault_of(error, f"under {log.parent}")
    return fault or StageError(f"{first_line(error)} (log: {log})")


if __name__ == "__main__":
    run_and_exit(Path(sys.argv[1]), attempt=int(sys.argv[2]), flow_pid=int(sys.argv[3]))
