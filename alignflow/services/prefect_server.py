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
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from alignflow.errors import StageError
from alignflow.stages.process import wait_for_death

START_SECONDS = 180
STOP_SECONDS = 10
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
    with socket.create_server(("127.0.0.1", 0)) as line:
        address = f"http://127.0.0.1:{line.getsockname()[1]}/api"
        process = _start(line, log)
    os.environ["PREFECT_API_URL"] = address
    atexit.register(_stop, process)
    return lambda: _wait(process, address, log)


def _start(line: socket.socket, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "alignflow.services.prefect_server"),
                *(str(line.fileno()), str(os.getpid())),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[line.fileno()],
            env={**os.environ, **EPHEMERAL},
            start_new_session=True,  # Ctrl-C is for the flow, which still has states to report
        )


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=START_SECONDS):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise StageError(
        f"Prefect's temporary server did not start (log: {log}). Run again, or set "
        "PREFECT_API_URL to a server of yours."
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Lets the server write what it has heard of the run, then ends it."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
