"""Files that another process moves between a look and the use: the moment is forced in each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_spec

from alignflow.files import held, sha256_file
from alignflow.ledger import (
    add,
    described,
    erase,
    erasing_files,
    freeze,
    inbox,
    snapshot_files,
    take_in,
    training_rows,
)
from alignflow.ledger.incoming import move_into
from alignflow.pipeline.report import recent_runs
from alignflow.services import children
from alignflow.sql.databases import Limits, SqliteDatabase
from alignflow.stages import StageResult, artifact_directory, artifacts, find, publish, verify
from alignflow.stages.events import EventWriter, written_bytes

ROW = {"prompt": "what stands in the text of this row?", "chosen": "one", "rejected": "another"}


def first(owner: Any, name: str, act: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Has `act` done once, at the moment when `owner.name` is called next."""
    real, pending = getattr(owner, name), [act]

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if pending:
            pending.pop()()
        return real(*arguments, **options)

    patch.setattr(owner, name, wrapped)


def an_artifact(home: Path) -> Path:
    spec = fake_spec(home)
    output = home / "work" / spec.stage / spec.key / "output"
    output.mkdir(parents=True)
    (output / "content.txt").write_text("whole")
    return publish(spec, StageResult(), 1.0, 1).directory


def test_an_artifact_that_is_moved_while_it_is_read_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = an_artifact(tmp_path)
    first(artifacts, "hash_files", lambda: directory.rename(tmp_path / "away"), monkeypatch)
    assert find(tmp_path, "sft", directory.name) is None


def test_a_damaged_artifact_that_two_move_aside_is_moved_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = an_artifact(tmp_path)
    (directory / "content.txt").write_text("torn")
    aside = directory.with_name(f"bad-{directory.name}-0")
    first(artifacts, "_move_aside", lambda: directory.rename(aside), monkeypatch)
    assert find(tmp_path, "sft", directory.name) is None
    assert [path.name for path in directory.parent.iterdir()] == [aside.name]


def test_an_artifact_that_appears_while_another_is_published_is_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = artifact_directory(tmp_path, "sft", fake_spec(tmp_path).key)

    def appear() -> None:
        target.mkdir(parents=True)
        (target / "theirs").touch()

    first(artifacts, "_renamed", appear, monkeypatch)
    assert verify(an_artifact(tmp_path)).directory == target
    assert (target.with_name(f"bad-{target.name}-0") / "theirs").exists()


def test_events_that_are_published_meanwhile_are_none(tmp_path: Path) -> None:
    assert written_bytes(tmp_path / "events.jsonl") == 0
    EventWriter(tmp_path / "events.jsonl", 1).close()
    assert written_bytes(tmp_path / "events.jsonl") == 0


def test_a_run_that_is_deleted_is_not_among_the_recent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "report.json").touch()
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if path.parent.name == "a" and path.name == "report.json":
            shutil.rmtree(path.parent, ignore_errors=True)
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert recent_runs(tmp_path) == ["b"]


def test_rows_that_waited_are_written_again_where_another_run_drops_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = a_ledger(tmp_path)
    path = training_rows(home, "default", None)
    whole = sha256_file(path)
    first(os, "utime", path.unlink, monkeypatch)
    assert sha256_file(training_rows(home, "default", None)) == whole
    os.utime(path, (1.0, 1.0))
    first(snapshot_files.time, "time", path.unlink, monkeypatch)
    snapshot_files.drop_old_waiting(path.parent)


def a_ledger(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**ROW, "chosen": f"one {n}"}) + "\n" for n in range(9)))
    add(tmp_path / "home", [file])
    return tmp_path / "home"


def test_a_snapshot_whose_file_is_taken_away_is_written_again(tmp_path: Path) -> None:
    home = a_ledger(tmp_path)
    frozen = freeze(home, "default")
    frozen.path.unlink()
    again = freeze(home, "default")
    assert again.path.exists() and described(again.path) == described(frozen.path)


def test_a_text_is_erased_also_from_a_file_that_moves_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = a_ledger(tmp_path)
    text = json.dumps(ROW) + "\n"
    waiting, done = home / "inbox" / "x.jsonl", home / "inbox" / "done" / "x.jsonl"
    done.parent.mkdir(parents=True)
    waiting.write_text(text)
    # `done/` is looked at before `x.jsonl`, which is moved there just then
    first(erasing_files, "_erase_from", lambda: waiting.rename(done), monkeypatch)
    erase(home, source=str(tmp_path / "rows.jsonl"), reason="asked")
    assert ROW["prompt"] not in done.read_text()


def test_a_file_that_another_ingest_moves_is_neither_refused_nor_taken_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, home = tmp_path / "inbox", tmp_path / "home"
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "inbox").mkdir(exist_ok=True)
        (box / name).write_text(json.dumps({**ROW, "chosen": name}) + "\n")
    first(inbox, "add_sources", (box / "a.jsonl").unlink, monkeypatch)
    first(inbox, "move_into", lambda: (box / "b.jsonl").rename(tmp_path / "b"), monkeypatch)
    taken = take_in(home, str(box), "default", settled_seconds=0.0)
    assert [(added.counts.accepted, added.refused) for added in taken.added] == [(1, [])]


def test_a_refused_file_never_replaces_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignflow.ledger import incoming

    (tmp_path / "x").write_text("ours")
    taken = tmp_path / "rejected" / "x"
    first(incoming, "_rename_to_free", lambda: taken.write_text("theirs"), monkeypatch)
    moved = move_into(tmp_path / "rejected", tmp_path / "x", "x")
    assert (moved.name, moved.read_text(), taken.read_text()) == ("1-x", "ours", "theirs")
    assert not (tmp_path / "x").exists()


def test_a_database_whose_writer_closes_it_meanwhile_is_read(tmp_path: Path) -> None:
    import sqlite3

    writer = sqlite3.connect(tmp_path / "data.db")
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE t (x)")
    writer.commit()
    assert (tmp_path / "data.db-wal").exists()
    writer.close()
    assert not (tmp_path / "data.db-wal").exists()
    SqliteDatabase.at(str(tmp_path / "data.db"), Limits())


def test_a_thread_that_ends_while_children_are_listed_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = Path("/proc/self/task/0/children")
    monkeypatch.setattr(Path, "glob", lambda *_: iter([gone]))
    assert children._children() == []


HOLDS = """
import sys, time
from pathlib import Path
from alignflow.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("kill", [False, True], ids=["lets go", "is killed"])
def test_a_lock_is_waited_for_and_leaves_no_file(tmp_path: Path, kill: bool) -> None:
    lock, waits = tmp_path / "x.lock", []
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(lock), "60" if kill else "0.3"], stdout=subprocess.PIPE
    )
    assert other.stdout is not None and other.stdout.readline() == b"held\n"

    def on_wait() -> None:
        waits.append(time.monotonic())
        if kill:
            other.kill()

    with held(lock, on_wait):
        assert other.wait(10) == (-9 if kill else 0)
    other.stdout.close()
    assert len(waits) == 1 and not lock.exists()
