"""Runs the flow `retrain` on fake stages, each run in a process of its own for tests to kill.

One line of input, `HOME [FAULT]`, is one run; one line of output its process id, then one its exit code.
The runs are forked from this process before it has any thread: imports cost more than a run.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from pathlib import Path

from retrain_cases import retrain_recipe

from alignflow.pipeline import retries
from alignflow.stages import forkserver
from alignflow.tracking import import_mlflow
from flows.retrain import retrain


def serve() -> None:
    """Forks one run per line of input and waits for it."""
    for line in sys.stdin:
        home, _, fault = line.strip().partition(" ")
        assert threading.active_count() == 1, threading.enumerate()
        pid = os.fork()
        if pid == 0:
            run(Path(home), fault)
        say(pid)
        _, status = os.waitpid(pid, 0)
        say(os.waitstatus_to_exitcode(status))


def say(number: int) -> None:
    """One line of output."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def run(home: Path, fault: str) -> None:
    """One run; never returns."""
    os.setsid()
    if fault:
        os.environ["ALIGNFLOW_FAULT"] = f"{fault}:1:kill"
    code = 1
    try:
        retrain(recipe=retrain_recipe(), home=home, reason="kill test")
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    import_mlflow()
    retries.FIRST_DELAY_SECONDS = 0.0
    forkserver.Forkserver = partial(forkserver.Forkserver, preload=("fake_stages",))  # type: ignore[assignment, misc]
    serve()
