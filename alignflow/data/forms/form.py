"""One form of a row, and what its conversions share. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from alignflow.data.calls import from_json
from alignflow.data.rejected import BadRow, kind
from alignflow.data.turns import is_messages, messages_in

Row = dict[str, Any]
CONTEXT = ("system", "tools", "functions")
"""Columns that most forms read beside their own."""


class Form(NamedTuple):
    """A form that rows may have."""

    name: str
    """What a recipe calls it, `form: NAME`."""
    told_by: tuple[str, ...]
    """Columns that a row of the form has; `a|b` is either, `*.a` any whose name ends so."""
    reads: tuple[str, ...] = ()
    """Columns that it may have beside these; `*` where it looks at all."""
    convert: Callable[[Row], list[Row]] = lambda row: [row]
    """From a row to the canonical rows that it says; raises BadRow."""


def parsed(row: Row) -> list[Row]:
    """A row of canonical columns, in which messages may stand as the text of their JSON."""
    changed = {
        name: told
        for name, value in row.items()
        if isinstance(value, str) and name in _MAY_BE_MESSAGES
        if (told := messages_in(value)) is not value
    }
    if row.get("functions") is not None and row.get("tools") is None:
        changed["tools"] = row["functions"]
    return [{**row, **changed}] if changed else [row]


_MAY_BE_MESSAGES = {"prompt", "completion", "messages", "chosen", "rejected"}


def context_of(row: Row) -> Row:
    """System prompt and tools of a row."""
    tools = row.get("tools") if row.get("tools") is not None else row.get("functions")
    return {"system": row.get("system"), "tools": tools}


def liked_in(row: Row) -> Any:
    """The label of a rated row, by either of its names."""
    return row["kto_tag"] if row.get("kto_tag") is not None else row["label"]


def listed(row: Row, name: str) -> list[Any]:
    """A column that is a list, or the JSON of one.

    Raises:
        BadRow: It is something else, or empty.
    """
    value = from_json(row[name])
    if not isinstance(value, list):
        raise BadRow(f"type:{name}:{kind(value)}", f"{name} is {kind(value)}, not a list")
    if not value:
        raise BadRow(f"empty:{name}", f"{name} is an empty list")
    return value


def text_of(row: Row, name: str) -> str:
    """A column that is text.

    Raises:
        BadRow: It is something else.
    """
    if not isinstance(row[name], str):
        raise BadRow(f"type:{name}:{kind(row[name])}", f"{name} is {kind(row[name])}, not text")
    return row[name]


def one_message(value: Any) -> Any:
    """A message that stands alone, or the JSON of one, as a list of it; anything else as it is."""
    value = messages_in(value)
    return [value] if is_messages([value]) else value
