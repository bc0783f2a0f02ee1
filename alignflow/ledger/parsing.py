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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from alignflow.data.forms import BadRow

LINES = (".jsonl", ".jsonl.gz")
SUFFIXES = (*LINES, ".parquet")
MAX_LINE_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_GZ_BYTES = 4 * 1024**3
MAX_GZ_RATIO = 100
GZ_GRACE_BYTES = 16 * 1024**2
KEPT_BYTES = 64 * 1024
BOM = b"\xef\xbb\xbf"
PARQUET_BATCH = 1000


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


def check_suffix(name: str) -> None:
    """Checks that the name is one of a kind that is read.

    Raises:
        RefusedFile: It is not.
    """
    if not name.endswith(SUFFIXES):
        raise RefusedFile("unknown_kind", f"is none of {', '.join(SUFFIXES)}")


@contextmanager
def lines_of(path: Path, name: str, offset: int) -> Iterator[Iterator[Line]]:
    """The lines of a file from `offset` on.

    Args:
        path: The file.
        name: What it is called; its suffix says what it is.
        offset: Where to start, as an earlier `Line.end` said.
    """
    with open_regular(path) as file:
        if name.endswith(".parquet"):
            yield parquet_rows(file, offset)
        elif name.endswith(".gz"):
            yield _skipped_to(offset, split_lines(_Bounded(file)))
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


def _skipped_to(offset: int, lines: Iterator[Line]) -> Iterator[Line]:
    return (line for line in lines if line.offset >= offset)


class _Bounded:
    """A gzip stream that ends in RefusedFile where it grows beyond reason."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = gzip.GzipFile(fileobj=file, mode="rb")
        self._read = 0

    def readline(self, limit: int) -> bytes:
        try:
            line = self._stream.readline(limit)
        except (OSError, EOFError, zlib.error) as error:
            raise RefusedFile("gzip", f"is not a whole gzip file ({error})") from error
        self._read += len(line)
        allowed = max(GZ_GRACE_BYTES, MAX_GZ_RATIO * max(1, self._file.tell()))
        if self._read > min(MAX_GZ_BYTES, allowed):
            raise RefusedFile(
                "gzip_bomb",
                f"unpacks to more than {self._read} bytes; allowed are {MAX_GZ_RATIO} times its size "
                f"and {MAX_GZ_BYTES} bytes",
            )
        return line


def parquet_rows(file: BinaryIO, offset: int) -> Iterator[Line]:
    """Rows of a Parquet file; offsets are row numbers.

    Raises:
        RefusedFile: It is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=PARQUET_BATCH):
            if number + batch.num_rows <= offset:
                number += batch.num_rows
                continue
            for fields in batch.to_pylist():
                if number >= offset:
                    yield Line(number, number + 1, b"", 0, without_nulls(fields))
                number += 1
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise RefusedFile("parquet", f"is not a whole Parquet file ({error})") from error


def without_nulls(value: Any) -> Any:
    """Drops the nulls that Parquet's one schema puts where a row has no such field."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def raw_of(line: Line) -> bytes:
    """The bytes that quarantine keeps and hashes."""
    if line.fields is None:
        return line.raw
    return json.dumps(line.fields, ensure_ascii=False, default=str).encode(
        "utf-8", "backslashreplace"
    )


def is_blank(line: Line) -> bool:
    """Whether there is nothing on the line."""
    return line.fields is None and not line.raw.strip()


def fields_of(line: Line) -> dict[str, Any]:
    """The line as an object.

    Raises:
        BadRow: It is anything but one strict, flat enough, unambiguous JSON object.
    """
    if line.fields is not None:
        return line.fields
    raw = line.raw
    if line.size > MAX_LINE_BYTES:
        raise BadRow("line_too_long", f"{line.size} bytes, at most {MAX_LINE_BYTES}")
    if line.offset == 0 and raw.startswith(BOM):
        raw = raw[len(BOM) :]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("utf8", f"byte {error.start} of the line is not UTF-8") from error
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise BadRow("too_deep", f"nested deeper than {MAX_DEPTH}") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"json:{error.msg}", f"{error.msg} at character {error.pos}") from error
    except ValueError as error:
        raise BadRow("json:ValueError", str(error)[:200]) from error
    if not isinstance(value, dict):
        raise BadRow("type:row", f"the line holds a {type(value).__name__}, not an object")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise BadRow("too_deep", f"nested deeper than {MAX_DEPTH}")
    return value


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        deepest = max(deepest, depth)
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting += [(entry, depth + 1) for entry in inner if isinstance(entry, (dict, list))]
    return deepest


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow("duplicate_key", f"{twice!r:.60} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise BadRow("non_finite", f"{name} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
