"""Tool definitions and tool calls as people write them, brought to Transformers' convention. No torch.

A definition is `{"type": "function", "function": {"name", "description", "parameters"}}`, a call
`{"type": "function", "function": {"name", "arguments": {...}}}`, with its `id` where it has one.
"""

from __future__ import annotations

import json
import re
from typing import Any

from alignflow.data.rejected import BadRow, kind

Call = dict[str, Any]
Tool = dict[str, Any]
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
"""As Hermes, Qwen and many others write a call."""


def from_json(value: Any) -> Any:
    """What a text that holds a JSON array or object says; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def tools_of(value: Any, field: str = "tools") -> list[Tool] | None:
    """Definitions of a column; None where there are none.

    Raises:
        BadRow: It is no list of definitions, or of the JSON of one.
    """
    if isinstance(value, str) and not value.strip():
        return None
    entries = from_json(value)
    if isinstance(entries, dict):
        entries = [entries]
    if entries is None or entries == []:
        return None
    if not isinstance(entries, list):
        raise BadRow(
            f"type:{field}:{kind(entries)}", f"{field} is {kind(entries)}, not definitions of tools"
        )
    return [_tool(from_json(entry), field) for entry in entries]


def _tool(entry: Any, field: str) -> Tool:
    function = _named(entry)
    if function is None:
        raise BadRow(f"type:{field}:{kind(entry)}", f"{field} has {entry!r:.60}, wanted a name")
    return {"type": "function", "function": function}


def _named(entry: Any) -> dict[str, Any] | None:
    """The function of a definition or a call; None where it has no name."""
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    is_named = isinstance(function, dict) and isinstance(function.get("name"), str)
    return function if is_named else None


def calls_of(value: Any, field: str) -> list[Call]:
    """Calls of a turn, from a list, one object, or the JSON of either.

    Raises:
        BadRow: One of them has no name, or arguments that are no object.
    """
    entries = from_json(value)
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list) or not entries:
        raise BadRow(f"type:{field}:{kind(entries)}", f"{field} has {value!r:.60}, wanted calls")
    return [_call(from_json(entry), field) for entry in entries]


def _call(entry: Any, field: str) -> Call:
    function = _named(entry)
    if function is None:
        raise BadRow(
            f"type:{field}:{kind(entry)}", f"a call of {field} is {entry!r:.60}, wanted a name"
        )
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str) and not arguments.strip():
        arguments = {}
    arguments = from_json(arguments)
    if not isinstance(arguments, dict):
        raise BadRow(
            f"type:{field}:{kind(arguments)}",
            f"the arguments of {function['name']!r:.60} are {arguments!r:.60}, wanted an object",
        )
    call: Call = {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
    name = entry.get("id")
    return {"id": name, **call} if isinstance(name, str) and name else call


def written_calls(calls: list[Call]) -> str:
    """Calls as a target has them: `{"name", "arguments"}`, or a list of several."""
    told = [call["function"] for call in calls]
    return json.dumps(told[0] if len(told) == 1 else told, ensure_ascii=False)


def _call_texts(answer: str) -> list[str]:
    """Where an answer has calls, if they are JSON: between tags, or the whole of it, one or several."""
    return _TAGGED.findall(answer) or _json_values(answer.strip())


def _json_values(text: str) -> list[str]:
    """Objects or arrays that follow each other; all of it where something else stands among them."""
    if not text.startswith(("{", "[")):
        return []
    values, place = [], 0
    while place < len(text):
        try:
            _, end = json.JSONDecoder().raw_decode(text, place)
        except (ValueError, RecursionError):
            return [text]
        values.append(text[place:end])
        place = len(text) - len(text[end:].lstrip())
    return values


def made_calls(text: str) -> list[dict[str, Any]] | None:
    """Name and arguments of each call that an answer or a target makes; None of what cannot be read."""
    calls: list[Call] = []
    for written in _call_texts(text):
        try:
            value = json.loads(written)
            calls += calls_of(value, "calls") if value != [] else []
        except (ValueError, RecursionError, BadRow):
            return None
    return [call["function"] for call in calls]
