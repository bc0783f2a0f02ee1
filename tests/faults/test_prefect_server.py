"""The temporary Prefect server of a run that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import alive, wait_until

from alignflow.services.prefect_server import start_temporary_server

STARTS = """
import os, subprocess, sys, time
from pathlib import Path
from alignflow.stages.environment import prefect_environment
from alignflow.services.prefect_server import start_temporary_server

os.environ.update(prefect_environment(Path(sys.argv[1])))
start_temporary_server(Path(sys.argv[1]))
print(os.environ["PREFECT_API_URL"], flush=True)
time.sleep(120)
"""


def test_the_server_ends_with_a_killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    run = subprocess.Popen([sys.executable, "-c", STARTS, str(tmp_path)], stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline().startswith(b"http://127.0.0.1:")
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    wait_until(lambda: not alive(int(children[0])))


def test_a_server_that_is_named_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    start_temporary_server(tmp_path)()
    assert not list(tmp_path.iterdir())
