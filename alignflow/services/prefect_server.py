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
from pathlib import Path

from alignflow.errors import StageError
from alignflow.services.children import answers, end_group
from alignflow.stages import start_module, wait_for_death

# The names by which Prefect's own temporary server says that it is one.
EPHEMERAL = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


def start_temporary_server(home: Path) -> Callable[[], None]:
    """Starts a server unless PREFECT_API_URL names one; returns what waits until it answers.

    Set `environment.prefect_environment` before, and import prefect after: the server ends when
    this process exits, after Prefect has sent its last logs, since exit handlers run backwards.
    """
    if os.environ.get("PREFECT_API_URL"):
        return lambda: None
    log = home / "prefect" / "server.log"
    log.unlink(missing_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as line:
        address = f"http://127.0.0.1:{line.getsockname()[1]}/api"
        # A session of its own: Ctrl-C is for the flow, which still has states to report.
        process = start_module(
            "alignflow.services.prefect_server",
            [line.fileno(), os.getpid()],
            {**os.environ, **EPHEMERAL},
            log,
            pass_fds=[line.fileno()],
        )
    os.environ["PREFECT_API_URL"] = address
    atexit.register(end_group, process)  # once it has written what it has heard of the run
    return lambda: _wait(process, address, log)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    if not answers(process, f"{address}/health"):
        raise StageError(
            f"Prefect's temporary server did not start (log: {log}). Run again, or set "
            "PREFECT_API_URL to a server of yours."
        )


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
