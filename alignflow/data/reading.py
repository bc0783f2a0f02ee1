"""Raw rows of any data source: builtin, ledger, files, Hub. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from alignflow.data.columns import renamed
from alignflow.data.file_rows import RawRow, numbered, read_file
from alignflow.data.forms import form_names
from alignflow.data.groups import falls_into
from alignflow.data.neighbours import by_neighbour, joined
from alignflow.data.pointers import pointed_rows
from alignflow.errors import DataError
from alignflow.machine import asking_hub
from alignflow.recipe import (
    DataSource,
    is_builtin,
    is_hub_id,
    is_ledger,
    matching_files,
    pointed,
)


def read_source(source: DataSource, *, seed: int, path: str | None = None) -> Iterator[RawRow]:
    """Rows of a source as they are read: columns mapped, its share drawn by `seed`.

    `path` is where the ledger's rows are.

    Raises:
        DataError: There is nothing to read, or no form of that name.
    """
    require_form(source.form, source.source)
    mapped = (mapped_row(row, source.columns) for row in _rows(source, path, seed))
    rows = _with_neighbours(mapped)
    if source.form is not None:
        rows = (row._replace(form=source.form) for row in rows)
    some = False
    for row in drawn_share(rows, source.weight, f"{seed}:{source.source}"):
        some = True
        yield row
    if not some:
        raise DataError(f"{source.source}: the data set is empty. Give a source that has rows.")


def require_form(form: str | None, where: str) -> None:
    """Checks the name of a form.

    Raises:
        DataError: There is none of it.
    """
    if form is not None and form not in form_names():
        raise DataError(
            f"{where}: no form is named {form!r}; there are {', '.join(form_names())}. Correct `form`."
        )


def drawn_share(rows: Iterable[RawRow], weight: float, seed: str) -> Iterator[RawRow]:
    """About `weight` of the rows, at least one of any, in their order.

    The hash of a row's number decides over it, so that none need be counted first.
    """
    first, drawn = None, False
    for number, row in enumerate(rows):
        first = first or row
        if weight >= 1 or falls_into(weight, f"{seed}:{number}".encode()):
            drawn = True
            yield row
    if first is not None and not drawn:
        yield first


def _rows(source: DataSource, path: str | None, seed: int) -> Iterator[RawRow]:
    if is_builtin(source.source):
        from alignflow.builtin import rows

        return numbered(rows(source.source.removeprefix("builtin:"), seed), source.source)
    if is_ledger(source.source):
        if path is None:
            raise DataError(f"{source.source}: the ledger gave no file of its rows.")
        return read_file(Path(path))
    if is_hub_id(source.source):
        return _hub_rows(source)
    if pointer := pointed(source.source):
        return pointed_rows(*pointer, source.split)
    files = matching_files(source.source, source.split)
    return (row for file in files for row in read_file(file))


def _hub_rows(source: DataSource) -> Iterator[RawRow]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    what = f"(subset {source.subset}, split {source.split}, revision {source.revision})"
    with asking_hub(f"{source.source} {what}"):
        try:
            rows = load_dataset(
                source.source, source.subset, split=source.split, revision=source.revision
            )
        except (DatasetNotFoundError, ValueError) as error:
            raise DataError(
                f"{source.source}: the Hub data set {what} cannot be loaded: {error}. Check the names."
            ) from error
    return numbered((dict(row) for row in rows), source.source)


def mapped_row(row: RawRow, columns: dict[str, str]) -> RawRow:
    """A row under our names of its columns."""
    if not columns or row.fields is None:
        return row
    return row._replace(fields=renamed(row.fields, columns))


def _with_neighbours(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    for group in by_neighbour(rows, lambda row: row.fields):
        if len(group) == 1:
            yield group[0]
        else:
            one, two = group
            yield RawRow(f"{one.place} and the next", joined(one.fields or {}, two.fields or {}))
