"""Raw rows of any data source: builtin, ledger, files, Hub. No torch."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, BinaryIO, NamedTuple

from alignflow.data.rejected import BadRow
from alignflow.errors import DataError
from alignflow.recipe import DataSource, is_builtin, is_hub_id, is_ledger, matching_files

LINES = (".jsonl", ".jsonl.gz")
MAX_DEPTH = 32
PARQUET_BATCH = 1000
_BOM = b"\xef\xbb\xbf"


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


def read_source(source: DataSource, *, seed: int, path: str | None = None) -> list[RawRow]:
    """Rows of a source: columns mapped, its share drawn by `seed`. `path` is where the ledger's are.

    Raises:
        DataError: There is nothing to read.
    """
    rows = [_mapped(row, source.columns) for row in _rows(source, path, seed)]
    if not rows:
        raise DataError(f"{source.source}: the data set is empty. Give a source that has rows.")
    return drawn_share(rows, source.weight, f"{seed}:{source.source}")


def drawn_share(rows: list[RawRow], weight: float, seed: str) -> list[RawRow]:
    """`weight` of the rows, at least one, in their order."""
    if weight >= 1:
        return rows
    count = max(1, round(weight * len(rows)))
    return [rows[index] for index in sorted(Random(seed).sample(range(len(rows)), count))]


def _rows(source: DataSource, path: str | None, seed: int) -> Iterator[RawRow]:
    if is_builtin(source.source):
        from alignflow.builtin import rows

        return _numbered(rows(source.source.removeprefix("builtin:"), seed), source.source)
    if is_ledger(source.source):
        if path is None:
            raise DataError(f"{source.source}: the ledger gave no file of its rows.")
        return read_file(Path(path))
    if is_hub_id(source.source):
        return _hub_rows(source)
    return (row for file in matching_files(source.source) for row in read_file(file))


def _numbered(rows: Iterable[dict[str, Any]], source: str) -> Iterator[RawRow]:
    return (RawRow(f"{source} row {number}", row) for number, row in enumerate(rows, 1))


def _hub_rows(source: DataSource) -> Iterator[RawRow]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(
            source.source, source.subset, split=source.split, revision=source.revision
        )
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise DataError(
            f"{source.source}: the Hub data set (subset {source.subset}, split {source.split}, "
            f"revision {source.revision}) cannot be loaded: {error}. Check the names and the network."
        ) from error
    return _numbered((dict(row) for row in rows), source.source)


def read_file(path: Path) -> Iterator[RawRow]:
    """Rows of one file, by its suffix.

    Raises:
        DataError: The suffix is unknown, or the file as a whole is unreadable.
    """
    try:
        if path.name.endswith(LINES):
            yield from _json_lines(path)
        elif path.name.endswith((".json", ".json.gz")):
            yield from _json_array(path)
        elif path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".csv":
            yield from _csv(path)
        else:
            raise DataError(
                f"{path}: unknown kind of file. Give .jsonl, .jsonl.gz, .json, .parquet or .csv."
            )
    except (OSError, UnicodeDecodeError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Check the file.") from error


def _content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _csv(path: Path) -> Iterator[RawRow]:
    table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
    for row in _numbered(table, str(path)):
        if row.fields is not None and None in row.fields:
            text = f"has more cells than the {len(row.fields) - 1} columns"
            row = RawRow(row.place, None, "ragged", text)
        yield row


def _json_lines(path: Path) -> Iterator[RawRow]:
    for number, line in enumerate(_content(path).split(b"\n"), 1):
        if line.strip():
            yield _parsed(f"{path}:{number}", line)


def _parsed(place: str, line: bytes) -> RawRow:
    try:
        return RawRow(place, json_object(line))
    except BadRow as bad:
        problem = "not_an_object" if bad.reason == "type:row" else "not_json"
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


def _json_array(path: Path) -> Iterator[RawRow]:
    try:
        rows = json.loads(_content(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}). One object a line is .jsonl.") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a {type(rows).__name__}, not an array of objects.")
    for number, row in enumerate(rows, 1):
        place = f"{path} row {number}"
        yield RawRow(place, row) if isinstance(row, dict) else RawRow(place, None, "not_an_object")


def _parquet(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        try:
            for number, row in parquet_rows(file):
                yield RawRow(f"{path} row {number + 1}", row)
        except (ValueError, NotImplementedError) as error:
            raise DataError(f"{path}: is not Parquet ({error}).") from error


def parquet_rows(file: BinaryIO, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a Parquet file from number `start` on, with their numbers; read batch by batch.

    Raises:
        ValueError, NotImplementedError, OSError: It is not Parquet (pyarrow's errors are these).
    """
    import pyarrow.parquet as pq

    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=PARQUET_BATCH):
        if number + batch.num_rows > start:
            for position, row in enumerate(batch.to_pylist(), number):
                if position >= start:
                    yield position, row
        number += batch.num_rows


def _mapped(row: RawRow, columns: dict[str, str]) -> RawRow:
    if not columns or row.fields is None:
        return row
    taken = set(columns.values())
    rest = {name: value for name, value in row.fields.items() if name not in taken}
    ours = {name: row.fields[theirs] for name, theirs in columns.items() if theirs in row.fields}
    return row._replace(fields={**rest, **ours})
