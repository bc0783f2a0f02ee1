"""Digests of sources: read once, and again whenever the file may have changed."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from alignflow.pipeline import source_digests
from alignflow.pipeline.source_digests import digests_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    directory = tmp_path / "home"
    directory.mkdir()
    return directory


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    plain = source_digests.sha256_file
    monkeypatch.setattr(
        source_digests, "sha256_file", lambda path: read.append(path) or plain(path)
    )
    return read


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(source_digests.time, "time", lambda: now + 60)


def test_a_settled_file_is_read_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, path = counted(monkeypatch), tmp_path / "a.jsonl"
    path.write_text("one")
    later(monkeypatch)
    expected = [sha256(b"one").hexdigest()]
    assert digests_of([path], home) == digests_of([path], home) == expected
    assert read == [path]


def test_a_file_that_was_written_just_now_is_read_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, path = counted(monkeypatch), tmp_path / "a.jsonl"
    path.write_text("one")
    assert digests_of([path], home) == digests_of([path], home)
    assert read == [path, path]


@pytest.mark.parametrize("way", ["in place", "renamed over"])
def test_same_size_and_time_and_other_content_is_another_digest(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A copy that keeps the time, as rsync and `cp -p` do, changes the inode or its own time."""
    later(monkeypatch)
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    before, stat = digests_of([path], home), path.stat()
    target = path if way == "in place" else tmp_path / "b.jsonl"
    target.write_text("two")
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    target.rename(path)
    assert path.stat().st_mtime_ns == stat.st_mtime_ns and path.stat().st_size == stat.st_size
    assert digests_of([path], home) == [sha256(b"two").hexdigest()] != before


def test_what_is_remembered_may_be_damaged_or_unwritable(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch)
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    (home / "cache").mkdir()
    (home / "cache" / "source_digests.json").write_text("{")
    assert digests_of([path], home) == [sha256(b"one").hexdigest()]
    assert digests_of([path], tmp_path / "no home") == [sha256(b"one").hexdigest()]
    assert not (tmp_path / "no home").exists()
