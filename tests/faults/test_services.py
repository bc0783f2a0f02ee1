"""Services end with whoever started them, and with them all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import alive, wait_until

from alignflow.errors import RecipeError, StageError

STARTS = """
import os, sys
from pathlib import Path
from alignflow.services import children as module
from alignflow.services.children import Service, ended_together

module.STOP_SECONDS = 1.0
with ended_together() as services:
    child = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
    services.append(Service("one", child, os.environ, Path(sys.argv[2]) / "one.log"))
    sys.stdin.readline()
"""
CHILD = """
import os, signal, subprocess, sys, time
from pathlib import Path

signal.signal(signal.SIGTERM, signal.SIG_IGN)
group = subprocess.Popen(["sleep", "60"])
away = subprocess.Popen(["sleep", "60"], start_new_session=True)
Path(sys.argv[1], ".pids").write_text(f"{os.getpid()} {group.pid} {away.pid}")
Path(sys.argv[1], ".pids").rename(Path(sys.argv[1], "pids"))
time.sleep(60)
"""


def started(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process with a service that does not want to end, and what the service started."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS, CHILD, str(folder)], stdin=subprocess.PIPE, text=True
    )
    pids = wait_until(lambda: (folder / "pids").exists() and (folder / "pids").read_text(), 60)
    return process, [int(word) for word in pids.split()]


def test_what_ignores_sigterm_and_what_left_the_group_ends_too(tmp_path: Path) -> None:
    process, pids = started(tmp_path)
    assert all(alive(pid) for pid in pids)
    process.communicate("end\n", timeout=90)
    assert process.returncode == 0 and not any(alive(pid) for pid in pids)


def test_a_group_ends_with_a_killed_starter(tmp_path: Path) -> None:
    process, pids = started(tmp_path)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(alive(pid) for pid in pids[:2]))
    os.kill(pids[2], signal.SIGKILL)  # has left the group, as no service of ours does


def test_a_service_that_fails_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    from alignflow.services.children import Service, demand_free

    fails = [sys.executable, "-c", "import sys; sys.exit('no such pool')"]
    service = Service("worker", fails, os.environ, tmp_path / "worker.log")
    with pytest.raises(StageError, match=r"worker ended with 1 .*\nno such pool"):
        service.wait_until_done()
    with pytest.raises(RecipeError, match="--prefect-port"):
        demand_free("203.0.113.1", 80, "--prefect-port")
