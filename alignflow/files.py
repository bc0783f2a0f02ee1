"""Durable files: written under another name, fsynced, renamed; hashed by content."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHUNK_BYTES = 4 * 1024 * 1024
LOCK_POLL_SECONDS = 0.1


def fsync_directory(directory: Path) -> None:
    """Makes renames and creations inside `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Flushes one file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def held(path: Path, on_wait: Callable[[], None] | None = None) -> Generator[None]:
    """Holds the lock of a name, which is no file afterwards; waits while another process has it.

    The lock is the kernel's (flock), so it ends with the process that holds it.

    Args:
        path: Where the lock stands.
        on_wait: Called once if it has to be waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path, on_wait or (lambda: None))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path, on_wait: Callable[[], None]) -> int:
    """Descriptor of a lock that is held, of the file that has the name now."""
    waited = False
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # whoever held it has just let it go
        except BlockingIOError:
            if not waited:
                on_wait()
            waited = True
            time.sleep(LOCK_POLL_SECONDS)
        os.close(descriptor)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`, whole or not at all, also over a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_directory(path.parent)


def atomic_write_text(path: Path, content: str) -> None:
    """`atomic_write_bytes` for UTF-8 text."""
    atomic_write_bytes(path, content.encode())


def atomic_write_json(path: Path, value: Any) -> None:
    """`atomic_write_text` of indented JSON; NaN and inf are refused."""
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """`atomic_write_text` of a JSON value a line."""
    atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def point_to(link: Path, target: Path) -> None:
    """Makes a link lead to a target beside or below it; a file or folder of that name stays."""
    if link.exists() and not link.is_symlink():
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.relative_to(link.parent))
    os.replace(temporary, link)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def regular_files(directory: Path) -> Iterator[Path]:
    """Every file below `directory`, sorted by path; symbolic links are followed."""
    yield from sorted(path for path in directory.rglob("*") if path.is_file())


def hash_files(
    directory: Path, known: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """`{relative path: {"sha256", "bytes"}}` of every file below `directory`, hashed in parallel.

    Files whose sha256 is `known`, by relative path, are not read again.
    """
    known = known or {}
    paths = {path.relative_to(directory).as_posix(): path for path in regular_files(directory)}
    unread = {name: path for name, path in paths.items() if name not in known}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        read = dict(zip(unread, pool.map(sha256_file, unread.values()), strict=True))
    digests = {**known, **read}
    return {
        name: {"sha256": digests[name], "bytes": path.stat().st_size}
        for name, path in paths.items()
    }


def digest_json(value: Any) -> str:
    """sha256 of the canonical JSON (sorted keys, no spaces) of `value`."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_certified(path: Path, rows: Any) -> None:
    """Writes JSON and its digest, for `read_certified`."""
    atomic_write_text(path, json.dumps({"digest": digest_json(rows), "rows": rows}))


def read_certified(path: Path) -> Any:
    """What `write_certified` wrote; None where there is nothing, or not the whole of it."""
    try:
        record = json.loads(path.read_text())
        return record["rows"] if record["digest"] == digest_json(record["rows"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def digest_directory(directory: Path, known: Mapping[str, str] | None = None) -> str:
    """sha256 over names and contents of every file below `directory`; `known` as in `hash_files`."""
    files = hash_files(directory, known)
    return digest_json({name: entry["sha256"] for name, entry in files.items()})


def file_stamps(directory: Path) -> dict[str, list[int]]:
    """`{relative path: [bytes, modification time in ns]}`: whether files may have changed."""
    return {
        path.relative_to(directory).as_posix(): [(stat := path.stat()).st_size, stat.st_mtime_ns]
        for path in regular_files(directory)
    }
