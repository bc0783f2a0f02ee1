"""The inbox: a folder, or any fsspec address, whose complete files are taken in and moved away.

A file is complete when it has not changed for some seconds and nobody here has it open for
writing. Writing it under another name (`.part`, or a dot before it) and renaming it is safe too.
What was taken in goes to `done/`, what is refused as a whole to `rejected/`. A file that is killed
between being taken in and being moved is known by its content, so it is not taken in again.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from alignflow.errors import DataError, RecipeError
from alignflow.ledger.incoming import REJECTED, Source, free_name, label_of, move_into
from alignflow.ledger.ingest import Added, add_sources
from alignflow.ledger.parsing import SUFFIXES

DONE = "done"
SETTLED_SECONDS = 10.0


class Entry(NamedTuple):
    """A complete file of an inbox."""

    name: str
    """Relative to the inbox."""
    label: str
    stamp: object
    """Differs once the file has changed."""


class TakenAway(Exception):
    """Somebody has moved the file since it was listed."""


class Taken(NamedTuple):
    """What one look into the inbox brought."""

    added: list[Added]
    waiting: list[str]
    """Files that may still be written."""
    ignored: list[str]
    """Files of kinds that are not read."""


def take_in(home: Path, inbox: str, into: str, settled_seconds: float = SETTLED_SECONDS) -> Taken:
    """Takes what is complete in an inbox into a preference set of an absolute home.

    An inbox is a folder, or an address that fsspec knows, such as `s3://bucket/feedback`.

    Raises:
        RecipeError: The address holds a password.
        DataError: The inbox is not there, or the ledger cannot be used.
    """
    box = inbox_at(inbox, home, settled_seconds)
    complete, waiting, ignored = box.look()
    added: list[Added] = []
    for entry in complete:
        try:
            with box.fetched(entry) as path:
                result = add_sources(home, [Source(path, entry.label)], into)
                if result.refused and _stamp(path) is None:
                    continue  # another ingest has taken it in and moved it
        except TakenAway:
            continue
        box.move(entry, REJECTED if result.refused else DONE)
        added.append(result)
    return Taken(added, waiting, ignored)


def inbox_at(
    inbox: str, home: Path, settled_seconds: float = SETTLED_SECONDS
) -> LocalInbox | RemoteInbox:
    """The inbox of an address; the home's own is made if need be."""
    if "://" in inbox:
        return RemoteInbox(inbox, home, settled_seconds)
    folder = Path(inbox).expanduser()
    if folder == default_inbox(home):
        folder.mkdir(parents=True, exist_ok=True)
    return LocalInbox(folder, settled_seconds)


def default_inbox(home: Path) -> Path:
    """The inbox of a home for which none is named."""
    return home / "inbox"


def _kinds(names: list[str]) -> tuple[list[str], list[str]]:
    """Names that are read, and others; hidden ones and what was moved away are neither."""
    read: list[str] = []
    others: list[str] = []
    for name in names:
        parts = PurePosixPath(name).parts
        if parts[0] not in (DONE, REJECTED) and not any(part.startswith(".") for part in parts):
            (read if name.endswith(SUFFIXES) else others).append(name)
    return read, others


class LocalInbox:
    """A folder on this machine."""

    def __init__(self, folder: Path, settled_seconds: float) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such inbox. Make the folder, or correct it.")
        self._folder = folder
        self._settled_seconds = settled_seconds

    def look(self) -> tuple[list[Entry], list[str], list[str]]:
        """Complete files, those that may still be written, and those of other kinds."""
        read, ignored = _kinds(sorted(self._names()))
        complete: list[Entry] = []
        waiting: list[str] = []
        for name in read:
            path = self._folder / name
            if (stamp := _stamp(path)) is None:
                continue
            if time.time() - stamp.changed < self._settled_seconds or is_written(path):
                waiting.append(name)
            else:
                complete.append(Entry(name, label_of(path.absolute()), stamp))
        return complete, waiting, ignored

    def _names(self) -> Iterator[str]:
        """Files and links below the folder; what was moved away is not even listed."""
        for place, folders, files in os.walk(self._folder):
            here = Path(place).relative_to(self._folder)
            if here == Path():
                folders[:] = [name for name in folders if name not in (DONE, REJECTED)]
            yield from ((here / name).as_posix() for name in files)

    @contextmanager
    def fetched(self, entry: Entry) -> Generator[Path]:
        """Context of the file's path on this machine."""
        yield self._folder / entry.name

    def move(self, entry: Entry, folder: str) -> None:
        """Moves the file away, unless it has changed since `look`."""
        path = self._folder / entry.name
        if _stamp(path) == entry.stamp and not is_written(path):
            with suppress(FileNotFoundError):  # another ingest has moved it in this moment
                move_into(self._folder / folder, path, entry.name)


class Stamp(NamedTuple):
    """What changes with a file."""

    number: int
    size: int
    changed: float


def _stamp(path: Path) -> Stamp | None:
    """A file's stamp; None where somebody has taken it away."""
    try:
        state = path.lstat()
    except FileNotFoundError:
        return None
    return Stamp(state.st_ino, state.st_size, state.st_mtime)


def is_written(path: Path) -> bool:
    """Whether a process of this machine has the file open for writing, as far as can be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False  # a link, or unreadable: it will be refused
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        # A read lease is refused while there is a writer. Should one come while we hold it, the
        # kernel's signal must not be SIGIO, which ends a process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False  # not ours, or a file system without leases
    finally:
        os.close(descriptor)
    return False


class RemoteInbox:
    """An address that fsspec knows. Its credentials come from the environment."""

    def __init__(self, address: str, home: Path, settled_seconds: float) -> None:
        import fsspec

        if urlsplit(address).password:
            raise RecipeError(
                "The inbox's address holds a password, which would stand in Prefect's parameters. "
                "Leave it out; fsspec finds credentials in the environment."
            )
        self._system, self._root = fsspec.core.url_to_fs(address)
        self._address = address.rstrip("/")
        self._work = home / "work"
        self._settled_seconds = settled_seconds

    def look(self) -> tuple[list[Entry], list[str], list[str]]:
        """See `LocalInbox`. Where the system tells no times, it is asked twice."""
        listed = self._listed()
        read, ignored = _kinds(sorted(listed))
        ages = {name: self._age_seconds(name) for name in read}
        if any(age is None for age in ages.values()):
            time.sleep(self._settled_seconds)
            again = self._listed()
            for name in (name for name, age in ages.items() if age is None):
                ages[name] = float("inf") if listed[name] == again.get(name) else 0.0
        settled = [name for name in read if (ages[name] or 0.0) >= self._settled_seconds]
        complete = [Entry(name, f"{self._address}/{name}", listed[name]) for name in settled]
        return complete, [name for name in read if name not in settled], ignored

    def _listed(self) -> dict[str, object]:
        """Name to stamp of every file."""
        self._system.invalidate_cache()
        try:
            files: dict[str, dict[str, Any]] = self._system.find(self._root, detail=True)
        except FileNotFoundError as error:
            raise DataError(f"{self._address}: there is no such inbox. Correct it.") from error
        volatile = ("mtime", "LastModified", "last_modified", "updated", "ETag", "created")
        return {
            self._relative(path): (info["size"], *(str(info.get(key)) for key in volatile))
            for path, info in files.items()
        }

    def _relative(self, path: str) -> str:
        return path.lstrip("/").removeprefix(self._root.strip("/")).lstrip("/")

    def _full(self, *parts: str) -> str:
        return "/".join([self._root.rstrip("/"), *parts])

    def _age_seconds(self, name: str) -> float | None:
        try:
            modified = self._system.modified(self._full(name))
        except NotImplementedError:
            return None
        aware = modified if modified.tzinfo else modified.replace(tzinfo=UTC)
        return (datetime.now(UTC) - aware).total_seconds()

    @contextmanager
    def fetched(self, entry: Entry) -> Generator[Path]:
        """See `LocalInbox`."""
        self._work.mkdir(parents=True, exist_ok=True)
        suffix = next(end for end in reversed(SUFFIXES) if entry.name.endswith(end))
        with tempfile.TemporaryDirectory(prefix="inbox-", dir=self._work) as folder:
            path = Path(folder) / f"fetched{suffix}"
            try:
                self._system.get_file(self._full(entry.name), str(path))
            except FileNotFoundError as error:
                raise TakenAway(entry.name) from error
            yield path

    def move(self, entry: Entry, folder: str) -> None:
        """See `LocalInbox`."""
        if self._listed().get(entry.name) != entry.stamp:
            return
        wanted = PurePosixPath(self._full(folder, entry.name))
        target = str(free_name(wanted, lambda path: self._system.exists(str(path))))
        self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
        with suppress(FileNotFoundError):  # another ingest has moved it in this moment
            self._system.mv(self._full(entry.name), target)
