"""Faults of the machine, each by its real cause: a mount, a full disk, a closed port, two at once."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_runs import executions, fake_recipe

from alignflow.errors import DiskSpaceError, RecipeError, StageError

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "deployments" / "recipes" / "quickstart.yaml"
MOUNT = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
FAKES = """
import os, sys
from functools import partial
from pathlib import Path
from fake_runs import fake_recipe, fake_spec, states
from alignflow.pipeline import retries
from alignflow.stages import forkserver
retries.FIRST_DELAY_SECONDS = 0.0
forkserver.Forkserver = partial(forkserver.Forkserver, preload=("fake_stages",))
"""


def on_tmpfs(options: str, place: Path, code: str, *arguments: object) -> str:
    """What a script prints in which a file system of its own is mounted at `place`."""
    place.mkdir()
    rights = [] if os.geteuid() == 0 else ["--map-root-user"]
    shell = ["unshare", "--mount", *rights, "bash", "-c", MOUNT, "bash", options, str(place)]
    return said([*shell, sys.executable, "-c", code, *map(str, arguments)])


def said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


COMMANDS = """
import contextlib, io, json, subprocess, sys
from alignflow.commands import cli
recipe, place = sys.argv[1:]
subprocess.run(["mkdir", f"{place}/home"], check=True)
open(f"{place}/file", "w").close()
ends = []
def end(*arguments):
    words = io.StringIO()
    with contextlib.redirect_stderr(words):
        ends.append((cli.exit_code_of([*arguments]), words.getvalue()))
end("run", recipe, "--home", f"{place}/home")
end("run", recipe, "--home", f"{place}/file/home")
end("run", recipe, "--home", f"{place}/file")
subprocess.run(["mount", "-o", "remount,ro", place], check=True)
end("run", recipe, "--home", f"{place}/home/new")
end("prefs", "add", recipe, "--home", f"{place}/new")
print(json.dumps(ends))
"""


def test_a_home_that_is_small_a_file_or_read_only_is_said(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    ends = json.loads(on_tmpfs("size=3m", place, COMMANDS, RECIPE, place).splitlines()[-1])
    assert [code for code, _ in ends] == [71, 64, 64, 64, 64]
    small, inside, file, new, ledger = (text for _, text in ends)
    assert "3.1 MB are free, and the databases and logs of Prefect and MLflow" in small
    assert f"{place}/file/home/prefect cannot be used (Not a directory)" in inside
    assert f"{place}/file/prefect cannot be used (Not a directory)" in file
    assert f"{place}/home/new" in new and "read-only file system" in new
    assert f"{place}/new" in ledger and "ALIGNFLOW_HOME" in ledger
    assert not any("Traceback" in text for _, text in ends)


FULL = (
    FAKES
    + """
import shutil
from alignflow.errors import DiskSpaceError
from alignflow.pipeline import run
from alignflow.stages import run_stage
from alignflow.tracking import Tracker
place, store = map(Path, sys.argv[1:])
home = place / "home"
home.mkdir()
shutil.copy(store, home / "mlflow.db")

def fill():
    with (home / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(65536)):
                pass
        except OSError:
            pass

def fails(when, work):
    try:
        work()
    except DiskSpaceError as error:
        assert "No space left while writing" in error.message, error.message
        assert "Free space or use another --home" in error.message, error.message
    else:
        raise AssertionError(when)
    for path in place.rglob("filler"):
        path.unlink()

fails("output", lambda: run_stage(fake_spec(home, "fill:output")))
fails("publish", lambda: run_stage(fake_spec(home, "fill:beside")))
import alignflow.pipeline.run
module = sys.modules["alignflow.pipeline.run"]
write = module.write_report
module.write_report = lambda *arguments: fill() or write(*arguments)
fails("report", lambda: run(fake_recipe(), home=home, progress=False))
module.write_report = write
fill()
with Tracker(fake_recipe(), home, "unheard") as tracker:
    tracker.drain()
    problem = tracker.place()["problem"]
assert "nothing is recorded" in problem and "full" in problem, problem
(home / "filler").unlink()
report = run(fake_recipe(), home=home, progress=False)
print(report["status"], *states(report).values())
"""
)


@pytest.mark.usefixtures("orders")
def test_a_disk_that_fills_at_any_moment_of_a_run_is_71_and_the_next_run_goes_on(
    tmp_path: Path, mlflow_store: Path
) -> None:
    place = tmp_path / "disk"
    printed = on_tmpfs("size=8m", place, FULL, place, mlflow_store)
    assert printed.split() == ["completed", *["cached"] * 6]


def test_a_server_that_found_no_room_is_71(tmp_path: Path) -> None:
    from alignflow.services.prefect_server import _wait

    log = tmp_path / "server.log"
    log.write_text("sqlite3.OperationalError: database or disk is full\n")
    ended = subprocess.Popen(["false"])
    with pytest.raises(DiskSpaceError, match=r"database or disk is full\. Free space"):
        _wait(ended, "http://127.0.0.1:9", log)
    log.write_text("")
    with pytest.raises(StageError, match="did not start: no message"):
        _wait(ended, "http://127.0.0.1:9", log)


def at_once(code: str, home: Path) -> list[str]:
    """What two processes print that begin together in a home that is not there yet."""
    command = [sys.executable, "-c", code, str(home)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [one.communicate(timeout=300)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    return printed


def test_two_runs_at_once_in_a_new_home_finish_and_share_their_work(
    home: Path, orders: Path
) -> None:
    (orders / "prepare").write_text("sleep:1")
    code = f"{FAKES}\nfrom alignflow.pipeline import run\nhome = sys.argv[1]\n"
    code += "print(run(fake_recipe(), home=home, progress=False)['status'])"
    assert at_once(code, home) == ["completed\n"] * 2
    made = executions(orders)
    assert sorted(made) == sorted(set(made)) and len(made) == 6
    assert not list(home.rglob("*.lock"))


@pytest.mark.proof
def test_two_prefect_servers_that_start_at_once_in_a_fresh_home_both_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    code = (
        "import os, sys; from pathlib import Path; home = Path(sys.argv[1])\n"
        "from alignflow.stages import prefect_environment\n"
        "from alignflow.services import start_temporary_server\n"
        "os.environ.update(prefect_environment(home)); start_temporary_server(home)(); print('up')"
    )
    assert at_once(code, tmp_path / "home") == ["up\n"] * 2
    left = {path.name for path in (tmp_path / "home" / "prefect").iterdir()}
    assert not [name for name in left if name.endswith((".log", ".lock"))]


class Refusing(BaseHTTPRequestHandler):
    """Wants credentials below /api, and has nothing elsewhere."""

    def do_GET(self) -> None:
        self.send_response(401 if self.path.startswith("/api") else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def refusing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_prefect_server_that_is_dead_elsewhere_or_closed_to_us_is_said(refusing: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.driver import demand_server

    with socket.create_server(("127.0.0.1", 0)) as line:
        dead = f"http://127.0.0.1:{line.getsockname()[1]}"
    cases = (
        (f"{dead}/api", StageError, "cannot be reached .*Connection refused.*run again later"),
        (f"{refusing}/api", RecipeError, "answers 401: it wants credentials.*PREFECT_API_KEY"),
        (f"{refusing}/elsewhere", RecipeError, "is no Prefect API .*ends in /api"),
    )
    for address, kind, text in cases:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(kind, match=text) as raised:
            patch.setenv("PREFECT_API_URL", address)
            with temporary_settings({PREFECT_API_URL: address}):
                demand_server()
        assert f"PREFECT_API_URL {address}" in raised.value.message.replace(" is ", " ")


def test_a_deleted_experiment_is_restored_and_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from alignflow.tracking import Tracker, registry_client, tracking_uri

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = registry_client(tracking_uri(home))
    client.delete_experiment(client.create_experiment("fake"))
    with caplog.at_level(logging.WARNING), Tracker(fake_recipe(), home, "first") as tracker:
        tracker.drain()
        place = tracker.place()
    assert client.get_run(place["run_id"]).info.run_name == "first"
    assert "problem" not in place
    assert "experiment 'fake' had been deleted" in caplog.text and "restored" in caplog.text
