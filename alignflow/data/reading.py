"""Raw rows of any data source: builtin, ledger, files, Hub. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from alignflow.data.columns import renamed
from alignflow.data.file_rows import RawRow, numbered, read_file
from alignflow.data.forms import form_names
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


def read_source(source: DataSource, *, seed: int, path: str | None = None) -> list[RawRow]:
    """Rows of a source: columns mapped, its share drawn by `seed`. `path` is where the ledger's are.

    Raises:
        DataError: There is nothing to read, or no form of that name.
    """
    require_form(source.form, source.source)
    mapped = (mapped_row(row, source.columns) for row in _rows(source, path, seed))
    rows = list(_with_neighbours(mapped))
    if source.form is not None:
        rows = [row._replace(form=source.form) for row in rows]
    if not rows:
        raise DataError(f"{source.source}: the data set is empty. Give a source that has rows.")
    return drawn_share(rows, source.weight, f"{seed}:{source.source}")


def require_form(form: str | None, where: str) -> None:
    """Checks the name of a form.

    Raises:
        DataError: There is none of it.
    """
    if form is not None and form not in form_names():
        raise DataError(
            f"{where}: no form is named {form!r}; there are {', '.join(form_names())}. Correct `form`."
        )


def drawn_share(rows: list[RawRow], weight: float, seed: str) -> list[RawRow]:
    """`weight` of the rows, at least one, in their order."""
    if weight >= 1:
        return rows
    count = max(1, round(weight * len(rows)))
    return [rows[index] for index in sorted(Random(seed).sample(range(len(rows)), count))]


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
    """The rows, two of HelpSteer2 that follow each other and have the same prompt as one."""
    waiting: RawRow | None = None
    for row in rows:
        both = waiting is not None and _is_half(row) and _prompt(waiting) == _prompt(row)
        if waiting is not None and both:
            yield _joined(waiting, row)
            waiting = None
            continue
        if waiting is not None:
            yield waiting
        waiting = row if _is_half(row) else None
        if waiting is None:
            yield row
    if waiting is not None:
        yield waiting


_HALF = ("prompt", "response", "helpfulness")


def _is_half(row: RawRow) -> bool:
    return row.fields is not None and all(row.fields.get(name) is not None for name in _HALF)


def _prompt(row: RawRow) -> object:
    return row.fields and row.fields["prompt"]


def _joined(one: RawRow, two: RawRow) -> RawRow:
    first, second = one.fields or {}, two.fields or {}
    both = {name: [first[name], second[name]] for name in _HALF[1:]}
    return RawRow(f"{one.place} and the next", {**first, **both})
