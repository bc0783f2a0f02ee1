"""Raw rows of any data source: builtin, ledger, files, Hub. No torch."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from alignflow.errors import DataError
from alignflow.recipe import DataSource
from alignflow.recipe.names import is_builtin, is_hub_id, is_ledger, matching_files

LINES = (".jsonl", ".jsonl.gz")


class RawRow(NamedTuple):
    """One row as it stands in its source."""

    place: str
    """File and line, or source and number."""
    fields: dict[str, Any] | None
    """None when it could not be read."""
    problem: str | None = None
    """Why it could not be read."""


def read_source(source: DataSource, *, seed: int, path: str | None = None) -> list[RawRow]:
    """Rows of a source: columns mapped, its share drawn.

    Args:
        source: What the recipe names.
        seed: Of the draw.
        path: Where a ledger source's rows are; other sources need none.

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
            text = path.read_text(encoding="utf-8-sig")
            yield from _numbered(csv.DictReader(io.StringIO(text)), str(path))
        else:
            raise DataError(
                f"{path}: unknown kind of file. Give .jsonl, .jsonl.gz, .json, .parquet or .csv."
            )
    except (OSError, UnicodeDecodeError, EOFError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Check the file.") from error


def _content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _json_lines(path: Path) -> Iterator[RawRow]:
    for number, line in enumerate(_content(path).split(b"\n"), 1):
        if line.strip():
            yield _parsed(f"{path}:{number}", line)


def _parsed(place: str, line: bytes) -> RawRow:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return RawRow(place, None, "not_json")
    return RawRow(place, value) if isinstance(value, dict) else RawRow(place, None, "not_an_object")


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: is not Parquet ({error}).") from error
    number = 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield RawRow(f"{path} row {number}", row)


def _mapped(row: RawRow, columns: dict[str, str]) -> RawRow:
    if not columns or row.fields is None:
        return row
    taken = set(columns.values())
    rest = {name: value for name, value in row.fields.items() if name not in taken}
    ours = {name: row.fields[theirs] for name, theirs in columns.items() if theirs in row.fields}
    return row._replace(fields={**rest, **ours})
