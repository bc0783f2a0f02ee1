"""sha256 of the files of a source, of which one that has not changed is not read again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from alignflow.files import atomic_write_json, sha256_file

KEPT_IN = Path("cache") / "source_digests.json"
SETTLED_SECONDS = 2.0
"""A file that was changed since is read again: its times may be too coarse for the next change."""


def digests_of(files: list[Path], home: Path) -> list[str]:
    """Of each file; those with the size, times and inode that the home remembers are taken from it."""
    kept = home / KEPT_IN
    known = _known(kept)
    found = {str(path.resolve()): _entry(path, known.get(str(path.resolve()))) for path in files}
    settled = {name: entry for name, entry in found.items() if _is_settled(entry)}
    new = any(known.get(name) != entry for name, entry in settled.items())
    if new and os.access(home, os.W_OK):  # a check of another's home writes nothing
        atomic_write_json(kept, known | settled)
    return [str(entry["sha256"]) for entry in found.values()]


def _known(kept: Path) -> dict[str, dict[str, int | str]]:
    """What is remembered; nothing where it cannot be read, since it can be found again."""
    try:
        return json.loads(kept.read_text())
    except (OSError, ValueError):
        return {}


def _entry(path: Path, known: dict[str, int | str] | None) -> dict[str, int | str]:
    stat = path.stat()
    now = {
        "bytes": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
        "changed_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }
    if known is not None and {**known, **now} == known:
        return known
    return {**now, "sha256": sha256_file(path)}


def _is_settled(entry: dict[str, int | str]) -> bool:
    return time.time() - int(entry["changed_ns"]) / 1e9 > SETTLED_SECONDS
