"""Data sets that LLaMA-Factory's `dataset_info.json` describes. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignflow.data.calls import from_json
from alignflow.data.file_rows import RawRow, read_file
from alignflow.recipe import matching_files, pointed_entry

_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_SHARE_GPT = {"messages": "conversations"}
"""LLaMA-Factory's names of columns to those that its files have where the entry names none."""
_SPEAKERS = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", "function_call"),
    "system_tag": ("system", "system"),
}
"""Names of speakers by default, and ours."""
_MESSAGES = ("conversations", "chosen", "rejected")


def pointed_rows(file: Path, name: str, split: str) -> Iterator[RawRow]:
    """Rows of an entry, under the columns and speakers that LLaMA-Factory's own files have.

    Raises:
        DataError: There is no such entry, or file.
    """
    entry = pointed_entry(file, name)
    for path in matching_files(f"{file}:{name}", split)[1:]:
        for row in read_file(path):
            yield row if row.fields is None else row._replace(fields=_told(row.fields, entry))


def _told(fields: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    share_gpt = entry.get("formatting") == "sharegpt"
    defaults = _SHARE_GPT if share_gpt else _ALPACA
    named = {**defaults, **_strings(entry.get("columns"))}
    ours = {theirs: defaults.get(name, name) for name, theirs in named.items()}
    told = {ours.get(column, column): value for column, value in fields.items()}
    tags = _strings(entry.get("tags"))
    if not share_gpt or not tags:
        return told
    return told | {name: _spoken(told[name], tags) for name in _MESSAGES if name in told}


def _strings(value: Any) -> dict[str, str]:
    items = value.items() if isinstance(value, dict) else ()
    return {name: text for name, text in items if isinstance(text, str)}


def _spoken(value: Any, tags: dict[str, str]) -> Any:
    """Messages, or one, as `role` and `content`."""
    value = from_json(value)
    if isinstance(value, list):
        return [_spoken(entry, tags) for entry in value]
    if not isinstance(value, dict):
        return value
    speaker, said = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    roles = {tags.get(tag, usual): ours for tag, (usual, ours) in _SPEAKERS.items()}
    named = value.get(speaker)
    role = roles.get(named, named) if isinstance(named, str) else named
    rest = {name: item for name, item in value.items() if name not in (speaker, said)}
    return {**rest, "role": role, "content": value.get(said)}
