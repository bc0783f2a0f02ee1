"""What the answers in somebody's data are, and which metric suits them."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

Kind = Literal["calls", "json", "sql", "label", "text"]
MOST = 0.5
LABEL_WORDS = 5
_SQL = re.compile(r"\s*(```(sql)?\s*)?(select|with|insert|update|delete|create)\b.*\S", re.I | re.S)
_SQL_WORD = re.compile(r"\b(from|into|set|table|as|values)\b", re.I)

METRICS: dict[Kind, tuple[list[str], str]] = {
    "calls": (["tool_call_accuracy"], "answers call tools: names and arguments must be the same"),
    "json": (["exact_match", "json_validity"], "answers are JSON: the same, and at least JSON"),
    "sql": (["exact_match"], "answers are SQL, compared as text: name a database to run them"),
    "label": (["exact_match"], "answers are short, so they are right or wrong"),
    "text": (["overlap"], "answers are sentences: F1 of the words in common, in their order"),
}
"""What the answers are judged by, and why."""


def kind_of(targets: Sequence[str]) -> Kind:
    """What most of the targets are."""
    targets = [_answer_in(target) for target in targets]
    values = [_json(target) for target in targets]
    structured = [value for value in values if value is not None]
    if _share(_is_calls(value) for value in values) > MOST and all(map(_is_calls, structured)):
        return "calls"
    if _share(isinstance(value, dict | list) for value in values) > MOST:
        return "json"
    if _share(_SQL.match(text) and _SQL_WORD.search(text) for text in targets) > MOST:
        return "sql"
    words = [len(text.split()) for text in targets]
    return "label" if not words or statistics.median(words) <= LABEL_WORDS else "text"


def _share(true: Iterable[object]) -> float:
    marks = [bool(mark) for mark in true]
    return sum(marks) / max(len(marks), 1)


def _answer_in(target: str) -> str:
    """The query of a target `{"answer": query, "ordered": true}`; any other as it is."""
    value = _json(target)
    answer = value.get("answer") if isinstance(value, dict) and "ordered" in value else None
    return answer if isinstance(answer, str) else target


def _json(text: str) -> object:
    try:
        return json.loads(text) if text.lstrip()[:1] in ("{", "[") else None
    except (ValueError, RecursionError):
        return None


def _is_calls(value: object) -> bool:
    calls = value if isinstance(value, list) else [value]
    return all(
        isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call
        for call in calls
    )
