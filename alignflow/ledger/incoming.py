"""Files that are to be taken in: found in folders, and moved aside when they are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

from alignflow.errors import DataError
from alignflow.files import fsync_directory
from alignflow.ledger.parsing import SUFFIXES, RefusedFile

REJECTED = "rejected"

Place = TypeVar("Place", bound=PurePath)


class Source(NamedTuple):
    """A file to take in."""

    path: Path
    label: str
    """What the ledger calls it; it is never opened by that."""
    aside: Path | None = None
    """Folder that it is moved to when it is refused."""


class Refused(NamedTuple):
    """A file of which nothing was taken in."""

    file: str
    reason: str
    message: str
    moved_to: str | None


def sources_in(path: Path) -> list[Source]:
    """The file, or what is in a folder and complete: no hidden and no temporary names.

    Raises:
        DataError: It is not there.
    """
    path = path.expanduser().absolute()
    if path.is_dir():
        inside = (entry for entry in sorted(path.rglob("*")) if entry.name.endswith(SUFFIXES))
        return [
            Source(entry, label_of(entry), path / REJECTED)
            for entry in inside
            if not any(part.startswith(".") for part in entry.relative_to(path).parts)
            and entry.relative_to(path).parts[0] != REJECTED
        ]
    if not path.exists() and not path.is_symlink():
        raise DataError(f"{path}: no such file or folder. Check the name.")
    return [Source(path, label_of(path))]


def label_of(path: Path) -> str:
    """A file's name as text."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def refuse(source: Source, problem: RefusedFile) -> Refused:
    """Moves a refused file aside, if it has a folder for that."""
    moved = None
    if source.aside is not None:
        with suppress(FileNotFoundError):  # somebody has taken it away
            moved = move_into(source.aside, source.path, source.path.name)
    return Refused(
        source.label, problem.reason, f"{source.label} {problem}", str(moved) if moved else None
    )


def move_into(folder: Path, path: Path, name: str) -> Path:
    """Moves a file to `folder`/`name`, or beside it where that is taken; returns where it is."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    while True:
        target = free_name(folder / name)
        with suppress(FileExistsError):  # another took the name between look and use
            _rename_to_free(path, target)
            break
    fsync_directory(target.parent)
    return target


def _rename_to_free(path: Path, target: Path) -> None:
    """Renames, but never over another file.

    Raises:
        FileExistsError: There is one of that name.
    """
    try:
        os.link(path, target, follow_symlinks=False)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a directory, or a file system without hard links
        os.rename(path, target)
    else:
        path.unlink()


def free_name(path: Place, exists: Callable[[Place], bool] = os.path.lexists) -> Place:
    """`path`, or with a number before its name the first that is not taken."""
    number, free = 1, path
    while exists(free):
        free = path.with_name(f"{number}-{path.name}")
        number += 1
    return free
