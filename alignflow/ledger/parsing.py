"""Lines and rows of untrusted files, each with its offset. One bad line costs one line.

Memory does not grow with the file: lines are bounded, compressed streams are bounded in size and
ratio, Parquet is read by batches, and what must be read whole is bounded in size.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from alignflow.data import (
    LINES,
    BadRow,
    RawRow,
    json_object,
    mapped_row,
    not_the_data,
    one_json_value,
    parquet_rows,
    read_file,
)
from alignflow.errors import DataError

WHOLE = (".json", ".csv", ".tsv")
"""Kinds of file that are read as a whole, or by the reader that `prepare` has."""
SUFFIXES = (*LINES, ".parquet", *WHOLE)
MAX_WHOLE_BYTES = 512 * 1024 * 1024
JUDGED_START_BYTES = 64 * 1024
MAX_LINE_BYTES = 1024 * 1024
MAX_GZ_BYTES = 4 * 1024**3
MAX_GZ_RATIO = 100
GZ_GRACE_BYTES = 16 * 1024**2
KEPT_BYTES = 64 * 1024


class RefusedFile(Exception):
    """A file of which nothing is taken in. The message says why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Line(NamedTuple):
    """One row as it stands in its file."""

    offset: int
    """Byte, or number of a Parquet row, that it starts at."""
    end: int
    """Where the next one starts."""
    raw: bytes
    """Its bytes, at most KEPT_BYTES of a line that is too long."""
    size: int
    fields: dict[str, Any] | None = None
    """Of a row that needs no parsing."""
    problem: BadRow | None = None
    """Why a row that needs no parsing could not be read."""


class Told(NamedTuple):
    """What whoever adds a file says of its rows."""

    form: str | None = None
    """What they are, where their columns could be of several forms."""
    columns: tuple[tuple[str, str], ...] = ()
    """Our names of columns, and those of the file."""

    def mapped(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A row's fields under our names."""
        return mapped_row(RawRow("", fields), dict(self.columns)).fields or {}


def open_regular(path: Path) -> BinaryIO:
    """Opens a file, and nothing else: no link, device, pipe or directory.

    Raises:
        RefusedFile: It is one of those, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise RefusedFile("symlink", "is a symbolic link; give the file itself") from error
        raise RefusedFile("unreadable", f"cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedFile("not_a_file", "is not a regular file")
    return os.fdopen(descriptor, "rb")


@contextmanager
def lines_of(path: Path, offset: int) -> Generator[Iterator[Line]]:
    """The lines of a file, which its suffix tells the kind of, from an earlier `Line.end` on."""
    with open_regular(path) as file:
        if path.name.endswith(".parquet"):
            yield _parquet_lines(file, offset)
        elif path.name.endswith(WHOLE):
            yield _whole_lines(path, offset)
        elif path.name.endswith(".gz"):
            yield (line for line in split_lines(Unpacked(file)) if line.offset >= offset)
        else:
            file.seek(offset)
            yield split_lines(file, offset)


def _whole_lines(path: Path, offset: int) -> Iterator[Line]:
    size = path.stat().st_size
    if size > MAX_WHOLE_BYTES:
        raise RefusedFile(
            "too_large",
            f"has {size} bytes, and its kind is read as a whole, at most {MAX_WHOLE_BYTES}. Give it as "
            ".jsonl or .parquet",
        )
    try:
        for number, row in enumerate(read_file(path)):
            if number >= offset:
                bad = BadRow(row.problem, row.message) if row.problem is not None else None
                yield Line(number, number + 1, b"", 0, row.fields or {}, bad)
    except DataError as error:
        told = error.message.removeprefix(f"{path}: ").rstrip(".")
        raise RefusedFile("unreadable", told) from error


def check_kind(path: Path, beginning: bytes) -> None:
    """Checks that a file of lines holds lines of text.

    Raises:
        RefusedFile: Its first bytes say that it is something else.
    """
    if problem := not_the_data(beginning):
        raise RefusedFile("not_the_data", problem)
    whole = beginning if len(beginning) < JUDGED_START_BYTES else b""
    is_lines = path.name.endswith(".jsonl") and b"\n" in whole.strip()
    if is_lines and (kind := one_json_value(whole)):
        raise RefusedFile("one_value", f"is one JSON {kind} over several lines. Name it .json")


def split_lines(file: Any, offset: int = 0) -> Iterator[Line]:
    """Lines of a stream; what is longer than MAX_LINE_BYTES is skipped and kept in part."""
    while raw := file.readline(MAX_LINE_BYTES + 1):
        size = len(raw)
        if size > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while rest := file.readline(MAX_LINE_BYTES):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
            raw = raw[:KEPT_BYTES]
        yield Line(offset, offset + size, raw, size)
        offset += size


class Unpacked:
    """A gzip stream that ends in RefusedFile where it is damaged, or grows beyond reason."""

    def __init__(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        self._allowed = min(MAX_GZ_BYTES, max(GZ_GRACE_BYTES, MAX_GZ_RATIO * size))
        self._stream = gzip.GzipFile(fileobj=file, mode="rb")
        self._read = 0

    def readline(self, limit: int) -> bytes:
        """The next line, or the beginning of it."""
        return self._checked(lambda: self._stream.readline(limit))

    def read(self, limit: int) -> bytes:
        """The next bytes."""
        return self._checked(lambda: self._stream.read(limit))

    def _checked(self, take: Callable[[], bytes]) -> bytes:
        try:
            taken = take()
        except (OSError, EOFError, zlib.error) as error:
            message = f"is not a whole gzip file ({error}). Copy it again"
            raise RefusedFile("gzip", message) from error
        self._read += len(taken)
        if self._read > self._allowed:
            raise RefusedFile(
                "gzip_bomb",
                f"unpacks to more than {self._allowed} bytes (allowed: {MAX_GZ_RATIO} times its size, "
                f"and {MAX_GZ_BYTES} bytes). Split it, or give it unpacked",
            )
        return taken


def _parquet_lines(file: BinaryIO, offset: int) -> Iterator[Line]:
    try:
        for number, fields in parquet_rows(file, offset):
            told = {name: value for name, value in fields.items() if value is not None}
            yield Line(number, number + 1, b"", 0, told)
    except (ValueError, NotImplementedError, OSError) as error:
        raise RefusedFile("parquet", f"is not a whole Parquet file ({error})") from error


def raw_of(line: Line) -> bytes:
    """The bytes that quarantine keeps and hashes."""
    if line.fields is None:
        return line.raw
    try:
        text = json.dumps(line.fields, ensure_ascii=False, default=str, skipkeys=True)
    except (RecursionError, ValueError):
        text = repr(line.fields)[:KEPT_BYTES]
    return text.encode("utf-8", "backslashreplace")


def fields_of(line: Line) -> dict[str, Any]:
    """The line as an object.

    Raises:
        BadRow: It is anything but one strict, flat enough, unambiguous JSON object.
    """
    if line.problem is not None:
        raise line.problem
    if line.fields is not None:
        return line.fields
    if line.size > MAX_LINE_BYTES:
        raise BadRow("line_too_long", f"{line.size} bytes, at most {MAX_LINE_BYTES}")
    return json_object(line.raw, strict=True)
