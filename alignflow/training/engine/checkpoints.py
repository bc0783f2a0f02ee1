"""Certified checkpoints: a directory counts only when its certificate, written last, fits its files.

The Trainer writes a checkpoint file by file, and its own resume takes the newest directory however
incomplete it is: some damage crashes every retry, some is not noticed at all.
"""

from __future__ import annotations

import json
import re
import shutil
from itertools import count
from pathlib import Path

from alignflow.files import (
    atomic_write_json,
    fsync_directory,
    fsync_file,
    hash_files,
    regular_files,
)

CERTIFICATE = "certificate.json"
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d+)")


def certify(directory: Path) -> None:
    """Makes a checkpoint's files durable, then writes its certificate."""
    (directory / CERTIFICATE).unlink(missing_ok=True)
    for path in regular_files(directory):
        fsync_file(path)
    fsync_directory(directory)
    atomic_write_json(directory / CERTIFICATE, {"schema": 1, "files": hash_files(directory)})
    fsync_directory(directory.parent)


def is_whole(directory: Path) -> bool:
    """Whether the certificate is there and fits every file."""
    try:
        expected = json.loads((directory / CERTIFICATE).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    actual = hash_files(directory)
    actual.pop(CERTIFICATE, None)
    return actual == expected


def newest_whole(root: Path) -> Path | None:
    """The newest checkpoint that verifies. Newer ones that do not are renamed `bad-...`."""
    for directory in reversed(_checkpoints(root)):
        if is_whole(directory):
            return directory
        names = (directory.with_name(f"bad-{directory.name}-{number}") for number in count())
        directory.rename(next(name for name in names if not name.exists()))
    return None


def rotate(root: Path, kept: int = KEPT) -> None:
    """Deletes all but the newest certified checkpoints."""
    certified = [path for path in _checkpoints(root) if (path / CERTIFICATE).exists()]
    for directory in certified[:-kept]:
        (directory / CERTIFICATE).unlink()
        shutil.rmtree(directory)


def step_of(directory: Path) -> int:
    """Number of updates behind a checkpoint."""
    match = _NAME.fullmatch(directory.name)
    return int(match.group(1)) if match else -1


def _checkpoints(root: Path) -> list[Path]:
    """Checkpoint directories, oldest first."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if step_of(path) >= 0), key=step_of)
