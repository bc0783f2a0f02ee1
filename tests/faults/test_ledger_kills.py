"""The ledger under SIGKILL, a full disk and two writers: nothing lost, nothing doubled."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ledger_cases import content, row, swapped, write

from alignflow.errors import DiskSpaceError
from alignflow.faults import InjectedFault
from alignflow.ledger import add, erase, freeze, renew_holdout, set_state, status
from alignflow.ledger.store import ledger_path

ROOT = Path(__file__).parents[2]
ADD = """
import sys
from pathlib import Path
from alignflow.ledger import ingest
ingest.BATCH_LINES = 25
result = ingest.add(Path(sys.argv[1]), [Path(sys.argv[2])])
print(result.counts.accepted)
"""
ACT = """
import sys
from pathlib import Path
from alignflow.ledger import *
home, act = Path(sys.argv[1]), sys.argv[2]
if act == "freeze":
    freeze(home)
elif act == "promote":
    promote(home, "m", expected=None, digest="d", artifacts={}, reason="", snapshot=sys.argv[3])
elif act == "erase":
    erase(home, source="desk", reason="asked")
elif act == "release":
    release(home, sys.argv[3], "rejected")
"""
ADD_POINTS = [
    "ledger.add.hashed:1",
    *(f"ledger.add.{point}:{n}" for point in ("rows", "commit", "committed") for n in (1, 4)),
    "ledger.add.done:1",
]
FREEZE_POINTS = [
    "ledger.freeze.rows",
    "ledger.freeze.commit",
    "ledger.freeze.committed",
    "ledger.snapshot.written",
    "ledger.snapshot.renamed",
]


def start(code: str, *arguments: object, fault: str | None = None) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "ALIGNFLOW_FAULT"}
    environment.pop("ALIGNFLOW_LEDGER_URL", None)
    if fault:
        environment["ALIGNFLOW_FAULT"] = fault
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == expected, err
    return out


@pytest.fixture(autouse=True)
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNFLOW_LEDGER_URL", raising=False)


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row(number) for number in range(100)]
    rows += [swapped(row(number, annotator="ann")) for number in range(0, 100, 10)]
    lines = [*rows, b"no json", *rows[:10]]
    return write(tmp_path_factory.mktemp("rows") / "a.jsonl", lines)


def check_whole(home: Path, rows_file: Path, clean: Path) -> None:
    """The ledger is what it is without any kill."""
    add(clean, [rows_file])
    assert content(home) == content(clean)
    found, wanted = status(home), status(clean)
    assert found == wanted


@pytest.mark.parametrize("point", ADD_POINTS)
def test_a_kill_at_any_point_of_adding_loses_and_doubles_nothing(
    point: str, tmp_path: Path, rows_file: Path
) -> None:
    home = tmp_path / "home"
    finish(start(ADD, home, rows_file, fault=f"{point}:kill"), -signal.SIGKILL)
    add(home, [rows_file])
    check_whole(home, rows_file, tmp_path / "clean")


def test_kills_at_random_moments_lose_and_double_nothing(tmp_path: Path, rows_file: Path) -> None:
    home, chance = tmp_path / "home", random.Random(5)
    for _ in range(5):
        process = start(ADD, home, rows_file)
        time.sleep(chance.uniform(0.2, 1.6))
        process.kill()
        process.communicate()
    add(home, [rows_file])
    check_whole(home, rows_file, tmp_path / "clean")


@pytest.mark.parametrize("point", FREEZE_POINTS)
def test_a_kill_at_any_point_of_freezing_ends_in_one_snapshot(point: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    renew_holdout(home, 0.0)
    add(home, [write(tmp_path / "a.jsonl", [row(number) for number in range(30)])])
    finish(start(ACT, home, "freeze", fault=f"{point}:1:kill"), -signal.SIGKILL)
    frozen = freeze(home)
    found = status(home)
    assert (found["waiting"], found["reserved"], len(found["snapshots"])) == (0, 30, 1)
    assert frozen.path.exists() and frozen.rows == 30


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("act", ["promote", "release"])
def test_a_kill_in_a_verdict_leaves_it_given_or_not(
    act: str, committed: bool, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    renew_holdout(home, 0.0)
    add(home, [write(tmp_path / "a.jsonl", [row(number) for number in range(10)])])
    name = freeze(home).name
    point = f"ledger.{act}.{'committed' if committed else 'commit'}:1:kill"
    finish(start(ACT, home, act, name, fault=point), -signal.SIGKILL)
    state, found = set_state(home, "default", "m"), status(home)
    if not committed:
        assert (state.undecided, state.champion, found["reserved"]) == (name, None, 10)
    elif act == "promote":
        assert (state.undecided, found["consumed"]) == (None, 10)
        assert state.champion is not None and state.champion.generation == 0
    else:
        assert (state.undecided, found["waiting"], state.new) == (None, 10, 0)


@pytest.mark.parametrize("point", ["buried", "files", "commit"])
def test_an_erase_that_is_killed_is_repeated_and_leaves_no_text(point: str, tmp_path: Path) -> None:
    home, secret = tmp_path / "home", "a secret of some length"
    renew_holdout(home, 0.0)
    add(home, [write(tmp_path / "a.jsonl", [row(1, prompt=secret, source="desk"), row(2)])])
    frozen = freeze(home)
    (home / "runs" / "r").mkdir(parents=True)
    (home / "runs" / "r" / "report.html").write_text(f"<p>{secret}</p>")
    finish(start(ACT, home, "erase", fault=f"ledger.erase.{point}:1:kill"), -signal.SIGKILL)
    assert freeze(home).rows == frozen.rows and status(home)["erased"] in (0, 1)
    assert len(erase(home, source="desk", reason="asked").erased) == 1
    for path in home.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path


def test_two_processes_that_add_the_same_folder_at_once_count_each_row_once(
    tmp_path: Path,
) -> None:
    inbox, home = tmp_path / "inbox", tmp_path / "home"
    for number in range(6):
        first = number * 100
        write(inbox / f"{number}.jsonl", [row(n) for n in range(first, first + 150)])
    accepted = [int(finish(process)) for process in [start(ADD, home, inbox) for _ in range(2)]]
    assert sum(accepted) == 650
    add(tmp_path / "clean", [inbox])
    assert content(home) == content(tmp_path / "clean")
    assert status(home)["rows"] == 650


def test_two_processes_that_freeze_at_once_get_the_same_snapshot(tmp_path: Path) -> None:
    home = tmp_path / "home"
    add(home, [write(tmp_path / "a.jsonl", [row(number) for number in range(30)])])
    for process in [start(ACT, home, "freeze") for _ in range(2)]:
        finish(process)
    assert len(status(home)["snapshots"]) == 1


def test_a_failure_in_mid_batch_undoes_the_batch(
    tmp_path: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNFLOW_FAULT", "ledger.add.rows:1:raise")
    with pytest.raises(InjectedFault):
        add(tmp_path / "home", [rows_file])
    assert status(tmp_path / "home")["rows"] == 0


def test_a_full_disk_is_said_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    home = tmp_path / "home"
    add(home, [write(tmp_path / "a.jsonl", [row(number) for number in range(20)])])
    before = content(home)
    big = write(
        tmp_path / "b.jsonl", [row(n, prompt=f"{n} " + "long " * 400) for n in range(100, 2000)]
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ledger_path(home).stat().st_size + 100_000, hard))
    try:
        with pytest.raises(DiskSpaceError, match="Free some space"):
            add(home, [big])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(home) == before
    assert add(home, [big]).counts.accepted == 1900
