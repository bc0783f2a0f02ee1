"""Rows of files of every kind, each with its place. No torch."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from alignflow.data.rejected import BadRow
from alignflow.errors import DataError
from alignflow.recipe import DATA_SUFFIXES

LINES = (".jsonl", ".jsonl.gz")
JSONS = (".json", ".json.gz")
MAX_DEPTH = 32
BATCH_ROWS = 1000
HEADER_CHARACTERS, BLOCK_BYTES = 2**16, 2**20
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LFS = b"version https://git-lfs"
_SEPARATORS = ",;\t|"
_LONGEST_CELL = 2**31 - 1
_NOT_AN_OBJECT = "not_an_object"


class RawRow(NamedTuple):
    """One row as it stands in its source."""

    place: str
    """File and line, or source and number."""
    fields: dict[str, Any] | None
    """None when it could not be read."""
    problem: str | None = None
    """Why it could not be read, as rows are counted by it."""
    message: str = ""
    """What is wrong with it."""
    form: str | None = None
    """What its source says that it is."""


def read_file(path: Path) -> Iterator[RawRow]:
    """Rows of one file, by its suffix; all but a JSON array is read as it goes.

    A line of .txt is a row of `text`.

    Raises:
        DataError: The suffix is unknown, or the file as a whole is unreadable.
    """
    reader = next((read for suffixes, read in _READERS if path.name.endswith(suffixes)), None)
    if reader is None:
        raise DataError(
            f"{path}: unknown kind of file. Give one that ends in {', '.join(DATA_SUFFIXES)}."
        )
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {_first_not_utf8(path)} is not UTF-8. Save the file as UTF-8."
        ) from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Check the file.") from error


def not_the_data(beginning: bytes) -> str | None:
    """What a file is, by its first bytes, where these are no rows."""
    if beginning.startswith(_UTF16):
        return "is UTF-16. Save it as UTF-8"
    if beginning.startswith(_LFS):
        return "is a pointer of Git LFS, not the data. Fetch the file itself with `git lfs pull`"
    return None


def numbered(rows: Iterable[dict[str, Any]], source: str) -> Iterator[RawRow]:
    """Rows with their number as their place."""
    return (RawRow(f"{source} row {number}", row) for number, row in enumerate(rows, 1))


@contextmanager
def _opened(path: Path) -> Generator[BinaryIO]:
    """The file, unpacked, at its beginning.

    Raises:
        DataError: It is not the data.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        if problem := not_the_data(file.peek(64)[:64]):
            raise DataError(f"{path}: {problem}.")
        yield cast("BinaryIO", file)


def _content(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _first_not_utf8(path: Path) -> int:
    """Place of the first byte of a file that is not UTF-8."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with _opened(path) as file:
        for block in iter(partial(file.read, BLOCK_BYTES), b""):
            before = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return done - before + error.start
            done += len(block)
    return done - len(decoder.getstate()[0])  # the file ends within a character


def _text_lines(path: Path) -> Iterator[RawRow]:
    with _opened(path) as file:
        for number, line in enumerate(_decoded(file), 1):
            if line.strip():
                yield RawRow(f"{path}:{number}", {"text": line.rstrip("\r\n")})


def _decoded(file: BinaryIO) -> io.TextIOWrapper:
    """The text of a file, of which a line ends with a line feed and nothing else."""
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")


def _table(path: Path) -> Iterator[RawRow]:
    """Rows of a table whose first line names its columns, parted by what parts most of these."""
    csv.field_size_limit(_LONGEST_CELL)
    with _opened(path) as file:
        separator = separator_of(path, _decoded(file).read(HEADER_CHARACTERS))
    with _opened(path) as file:
        table = csv.DictReader(_decoded(file), delimiter=separator)
        for row in numbered(table, str(path)):
            if row.fields is not None and None in row.fields:
                told = f"has more cells than the {len(row.fields) - 1} columns"
                row = RawRow(row.place, None, "ragged", told)
            yield row


def separator_of(path: Path, text: str) -> str:
    """What parts the cells of a table."""
    if path.suffix == ".tsv":
        return "\t"
    header = next(csv.reader(io.StringIO(text)), [])
    return "," if len(header) > 1 else max(_SEPARATORS, key=(header or [""])[0].count)


def _json_lines(path: Path) -> Iterator[RawRow]:
    with _opened(path) as file:
        first = next((line for line in file if line.strip()), b"")
    if _parsed("", first).problem is not None and (kind := one_json_value(_content(path))):
        raise DataError(
            f"{path}: is one JSON {kind}, and a .jsonl file is one object a line. Name it .json."
        )
    with _opened(path) as file:
        yield from _parsed_lines(path, file)


def one_json_value(content: bytes) -> str | None:
    """Whether a file is one array or object over several lines, and which; None where it is neither."""
    if content.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        value = json.loads(content.removeprefix(_BOM))
    except (ValueError, RecursionError):
        return None
    return "array" if isinstance(value, list) else "object"


def _parsed_lines(path: Path, lines: Iterable[bytes]) -> Iterator[RawRow]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _parsed(f"{path}:{number}", line)


def _parsed(place: str, line: bytes) -> RawRow:
    try:
        return RawRow(place, json_object(line))
    except BadRow as bad:
        problem = _NOT_AN_OBJECT if bad.reason == "type:row" else "not_json"
        return RawRow(place, None, problem, str(bad))


def json_object(line: bytes, *, strict: bool = False) -> dict[str, Any]:
    """A line of JSONL as an object; a byte order mark at its beginning is left out.

    `strict` takes no name that stands twice in an object, no NaN and nothing deeper than MAX_DEPTH.

    Raises:
        BadRow: It is none.
    """
    try:
        value = (_STRICT if strict else _LENIENT).decode(line.removeprefix(_BOM).decode())
    except UnicodeDecodeError as error:
        raise BadRow("utf8", f"byte {error.start} of the line is not UTF-8") from error
    except RecursionError as error:
        raise BadRow("too_deep", f"nested deeper than {MAX_DEPTH}") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"json:{error.msg}", f"{error.msg} at character {error.pos}") from error
    except ValueError as error:
        raise BadRow("json:ValueError", str(error)[:200]) from error
    if not isinstance(value, dict):
        raise BadRow("type:row", f"the line holds a {type(value).__name__}, not an object")
    if strict and line.count(b"{") + line.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
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
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow("duplicate_key", f"{twice!r:.60} stands twice in one object")
    return fields


def _no_constant(name: str) -> Any:
    raise BadRow("non_finite", f"{name} is no JSON number")


_LENIENT = json.JSONDecoder()
_STRICT = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def _json(path: Path) -> Iterator[RawRow]:
    """Rows of an array of objects, or of lines of JSON in a file that is named .json."""
    content = _content(path)
    try:
        rows = json.loads(content.removeprefix(_BOM))
    except (ValueError, RecursionError) as error:
        lines = content.split(b"\n")
        if all(_parsed("", line).fields is None for line in lines[:2]):
            raise DataError(f"{path}: is not JSON ({error}). Check the file.") from error
        yield from _parsed_lines(path, lines)
        return
    if isinstance(rows, dict) and b"\n" not in content.strip():
        rows = [rows]  # one line of JSON
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds {_described(rows)}, not an array of objects.")
    for number, row in enumerate(rows, 1):
        place = f"{path} row {number}"
        is_row = isinstance(row, dict)
        yield RawRow(place, row) if is_row else RawRow(place, None, _NOT_AN_OBJECT, _described(row))


def _described(value: Any) -> str:
    named = f" with {', '.join(map(str, value))[:100]}" if isinstance(value, dict) else ""
    return f"a {type(value).__name__}{named}"


def _parquet(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        try:
            for number, row in parquet_rows(file):
                yield RawRow(f"{path} row {number + 1}", row)
        except (ValueError, NotImplementedError) as error:
            problem = _beginning_problem(path) or f"is not Parquet ({error})"
            raise DataError(f"{path}: {problem}.") from error


def _arrow(path: Path) -> Iterator[RawRow]:
    try:
        yield from numbered(arrow_rows(path), str(path))
    except (ValueError, NotImplementedError) as error:
        problem = _beginning_problem(path) or f"is not Arrow ({error})"
        raise DataError(f"{path}: {problem}.") from error


def _beginning_problem(path: Path) -> str | None:
    with path.open("rb") as file:
        return not_the_data(file.read(64))


def parquet_rows(file: BinaryIO, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a Parquet file from number `start` on, with their numbers; read batch by batch.

    Raises:
        ValueError, NotImplementedError, OSError: It is not Parquet (pyarrow's errors are these).
    """
    import pyarrow.parquet as pq

    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS):
        if number + batch.num_rows > start:
            for position, row in enumerate(batch.to_pylist(), number):
                if position >= start:
                    yield position, without_inner_nulls(row)
        number += batch.num_rows


def arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow file or stream, such as `save_to_disk` writes; read batch by batch.

    Raises:
        ValueError, NotImplementedError, OSError: It is neither (pyarrow's errors are these).
    """
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            batches: Iterable[Any] = pa.ipc.open_stream(source)
        except ValueError:
            source.seek(0)
            whole = pa.ipc.open_file(source)
            batches = (whole.get_batch(number) for number in range(whole.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for row in batch.slice(start, BATCH_ROWS).to_pylist():
                    yield without_inner_nulls(row)


def without_inner_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the nulls that one schema puts into an object which has no such field."""
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


_READERS: tuple[tuple[tuple[str, ...], Callable[[Path], Iterator[RawRow]]], ...] = (
    (LINES, _json_lines),
    (JSONS, _json),
    ((".parquet",), _parquet),
    ((".arrow",), _arrow),
    ((".csv", ".tsv"), _table),
    ((".txt",), _text_lines),
)
