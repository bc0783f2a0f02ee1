"""The temporary Prefect server of `alignflow run`: started early, ended with the run.

Prefect would start one by itself, but only after the flow's process has imported the whole server
(2.4 s of CPU), and it would outlive a run that is killed. This one comes up while that process
imports Prefect, MLflow and the flow, and watches it like every other child.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from alignflow.errors import StageError
from alignflow.files import held
from alignflow.machine import DISK_TEXTS, demand_room, full_disk
from alignflow.services.children import answers, end_group
from alignflow.stages import start_module, wait_for_death

# The names by which Prefect's own temporary server says that it is one.
EPHEMERAL = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


_temporary: set[str] = set()
"""Addresses of servers that end with this process."""


def ends_with_the_run(address: str) -> bool:
    """Whether the server at an address is a temporary one of this process, which has no pages."""
    return address in _temporary


def start_temporary_server(home: Path) -> Callable[[], None]:
    """Starts a server unless PREFECT_API_URL names one; returns what waits until it answers.

    Set `environment.prefect_environment` before, and import prefect after: the server ends when
    this process exits, after Prefect has sent its last logs, since exit handlers run backwards.
    """
    if os.environ.get("PREFECT_API_URL"):
        return lambda: None
    log = home / "prefect" / f"server-{os.getpid()}.log"
    with ExitStack() as failing, socket.create_server(("127.0.0.1", 0)) as line:
        # Until it answers: of two servers that make the tables of one database one would fail.
        failing.enter_context(held(log.with_name("starting.lock")))
        address = f"http://127.0.0.1:{line.getsockname()[1]}/api"
        # A session of its own: Ctrl-C is for the flow, which still has states to report.
        process = start_module(
            "alignflow.services.prefect_server",
            [line.fileno(), os.getpid()],
            {**os.environ, **EPHEMERAL},
            log,
            pass_fds=[line.fileno()],
        )
        starting = failing.pop_all()
    os.environ["PREFECT_API_URL"] = address
    _temporary.add(address)
    atexit.register(_end, process, log)  # once it has written what it has heard of the run

    def wait() -> None:
        with starting:
            _wait(process, address, log)

    return wait


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    if answers(process, f"{address}/health"):
        return
    demand_room(log.parent)
    lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
    if any(text in line for line in lines for text in DISK_TEXTS):
        raise full_disk(str(log.parent), lines[-1])
    raise StageError(
        f"Prefect's temporary server did not start: {lines[-1]} (log: {log}). Run again, or set "
        "PREFECT_API_URL to a server of yours."
    )


def _end(process: subprocess.Popen[bytes], log: Path) -> None:
    """Ends the server; a log in which nothing stands goes with it."""
    end_group(process)
    with suppress(FileNotFoundError):  # somebody has removed the home
        if not log.stat().st_size:
            log.unlink()


def main() -> None:
    """The server's process."""
    descriptor, flow_pid = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(flow_pid,), daemon=True).start()
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on"
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def _end_with(flow_pid: int) -> None:
    wait_for_death(flow_pid)
    os._exit(0)


if __name__ == "__main__":
    main()
