"""Lines and rows of untrusted files, each with its offset. One bad line costs one line.

Memory does not grow with the file: lines are bounded, compressed streams are bounded in size and
ratio, and Parquet is read by batches.
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
from typing import Any, BinaryIO, NamedTuple, cast

from alignflow.data import LINES, BadRow, json_object, parquet_rows

SUFFIXES = (*LINES, ".parquet")
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
    """Of a Parquet row, which needs no parsing."""


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
        elif path.name.endswith(".gz"):
            yield (line for line in split_lines(Unpacked(file)) if line.offset >= offset)
        else:
            file.seek(offset)
            yield split_lines(file, offset)


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
            yield Line(number, number + 1, b"", 0, without_nulls(fields))
    except (ValueError, NotImplementedError, OSError) as error:
        raise RefusedFile("parquet", f"is not a whole Parquet file ({error})") from error


def without_nulls(value: Any) -> Any:
    """Drops the nulls that Parquet's one schema puts where a row has no such field."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {name: without_nulls(item) for name, item in fields.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in cast("list[Any]", value)]
    return value


def raw_of(line: Line) -> bytes:
    """The bytes that quarantine keeps and hashes."""
    if line.fields is None:
        return line.raw
    text = json.dumps(line.fields, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace")


def fields_of(line: Line) -> dict[str, Any]:
    """The line as an object.

    Raises:
        BadRow: It is anything but one strict, flat enough, unambiguous JSON object.
    """
    if line.fields is not None:
        return line.fields
    if line.size > MAX_LINE_BYTES:
        raise BadRow("line_too_long", f"{line.size} bytes, at most {MAX_LINE_BYTES}")
    return json_object(line.raw, strict=True)
