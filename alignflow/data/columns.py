"""Which columns of a stranger's row are ours under another name. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from alignflow.data.parts import formed
from alignflow.data.rejected import BadRow
from alignflow.recipe import DataSource

Row = Mapping[str, Any]
SYNONYMS: dict[str, tuple[str, ...]] = {
    "messages": ("conversation", "conversations", "dialogue", "dialog", "chat", "turns"),
    "prompt": (
        *("question", "query", "instruction", "input", "request", "problem", "utterance"),
        *("ticket", "subject", "user", "human", "task", "source", "text", "ask"),
    ),
    "completion": (
        *("answer", "response", "output", "reply", "solution", "target", "assistant", "label"),
        *("result", "sql", "code", "summary", "category", "intent", "expected", "bot", "gpt"),
    ),
    "chosen": ("preferred", "better", "accepted", "winner", "good", "best"),
    "rejected": ("dispreferred", "worse", "refused", "loser", "bad", "worst"),
    "label": ("liked", "rating", "thumbs", "feedback", "score", "kto_tag", "helpful"),
    "text": ("content", "document", "body", "article", "passage", "page"),
}
SYNONYMS |= {
    "instruction": SYNONYMS["prompt"],
    "response": SYNONYMS["completion"],
    "target": ("target", *SYNONYMS["completion"]),
}
"""Our columns, and what files call them, the likeliest first."""
_SPOKEN = (("prompt", "completion"), ("instruction", "response"), ("messages",))
WANTED: dict[str, tuple[tuple[str, ...], ...]] = {
    "sft": (*_SPOKEN, ("text",)),
    "preferences": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "ratings": (("prompt", "completion", "label"),),
    "prompts": (("prompt",),),
    "evaluation": (("prompt", "target"), *_SPOKEN),
}
"""Parts of the data, and the columns that rows of each may be given."""


def columns_that_fit(row: Row, part: str) -> dict[str, str] | None:
    """`{our name: name in the row}` with which the row is one of the part; None where none is.

    A row of two texts whose names say nothing is a question and its answer, in their order.
    """
    wanted = WANTED.get(part, (("text",),))
    tried = [names for ours in wanted if (names := _named(row, ours)) is not None]
    texts = [name for name, value in row.items() if isinstance(value, str)]
    if len(texts) == 2 and len(wanted[0]) == 2:
        tried.append(dict(zip(wanted[0], texts, strict=True)))
    fitting = next((names for names in tried if _fits(row, names, part)), None)
    return fitting and {ours: theirs for ours, theirs in fitting.items() if ours != theirs}


def columns_line(row: Row, part: str, source: DataSource) -> str:
    """What to write into the recipe so that rows like this one are of the part."""
    names = columns_that_fit(row, part)
    if names is None:
        ours = ", ".join(f"{name}: NAME" for name in WANTED.get(part, (("text",),))[0])
        return f"Map their names in the source, as in `columns: {{{ours}}}`"
    named = {ours: theirs for ours, theirs in source.columns.items() if ours in row}
    columns = further_columns(named, names)
    given = source.model_dump(mode="json", exclude_defaults=True)
    told = given | ({"columns": columns} if columns else {})
    return f"Write `{part}: {flow(told)}`"


def further_columns(given: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """Columns of a source, those found among them under names that were `given` before."""
    return {**given, **{ours: given.get(theirs, theirs) for ours, theirs in found.items()}}


def flow(value: Any) -> str:
    """A value as YAML in one line, unquoted where that reads as the same."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(name)}: {flow(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./-]*(:[\w./-]+)*", value):
        return value if value.lower() not in _NO_TEXT else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


_NO_TEXT = ("true", "false", "null", "~", "yes", "no", "on", "off")


def renamed(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """A row under our names of its columns."""
    taken = {*columns.values()}
    rest = {name: value for name, value in row.items() if name not in taken}
    return {**rest, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}


def _fits(row: Row, names: Mapping[str, str], part: str) -> bool:
    try:
        formed(part, renamed(row, names))
    except BadRow:
        return False
    return True


def _named(row: Row, wanted: tuple[str, ...]) -> dict[str, str] | None:
    """A column of the row for each of ours, no column twice; the clearest names go first."""
    ranked = sorted(
        (likeness, number, theirs)
        for number, ours in enumerate(wanted)
        for theirs in row
        if isinstance(theirs, str) and (likeness := _likeness(theirs, ours)) is not None
    )
    found: dict[str, str] = {}
    for _, number, theirs in ranked:
        if wanted[number] not in found and theirs not in found.values():
            found[wanted[number]] = theirs
    return {ours: found[ours] for ours in wanted} if len(found) == len(wanted) else None


def _likeness(theirs: str, ours: str) -> tuple[int, int] | None:
    """How far a column's name is from ours, 0 being the same; None where they have nothing in common."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", theirs)]
    if ours == theirs or ours in words:
        return (0 if ours == theirs else 1, 0)
    known = SYNONYMS.get(ours, ())
    places = [known.index(word) for word in words if word in known]
    return (2 + (len(words) > 1), min(places)) if places else None
