"""Two rows of HelpSteer2 that follow each other and have one prompt are one row of two responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Row = dict[str, Any]
Read = TypeVar("Read")
_OF_EACH = ("response", "helpfulness")


def is_half(fields: Row | None) -> bool:
    """Whether a row is one response of two that were rated."""
    return (
        fields is not None
        and fields.get("helpfulness") is not None
        and fields.get("response") is not None
        and fields.get("prompt") is not None
    )


def by_neighbour(
    rows: Iterable[Read], fields_of: Callable[[Read], Row | None]
) -> Iterator[list[Read]]:
    """The rows in groups of one, or of two that belong together."""
    waiting: list[Read] = []
    for row in rows:
        fields = fields_of(row)
        is_one = is_half(fields)
        if waiting and is_one and _prompt(fields_of(waiting[0])) == _prompt(fields):
            yield [waiting.pop(), row]
            continue
        if waiting:
            yield [waiting.pop()]
        if is_one:
            waiting.append(row)
        else:
            yield [row]
    if waiting:
        yield waiting


def joined(first: Row, second: Row) -> Row:
    """Two rows as one, with lists of the responses and what each was rated."""
    return {**first, **{name: [first[name], second[name]] for name in _OF_EACH}}


def _prompt(fields: Row | None) -> object:
    return fields and fields["prompt"]
