"""Preference pairs as conversations, by the rules of `alignflow.data.feedback`."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from alignflow.data.feedback import Rating, dialogue_turns, preferences_of, split_pair
from alignflow.data.forms import BadRow, conversation
from alignflow.data.template import Message

PAIR_COLUMNS = "prompt, chosen and rejected; or chosen and rejected that hold whole dialogues"


RATING_COLUMNS = "prompt, completion and label"


class Pair(NamedTuple):
    """One prompt, two answers."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def preference_pair(fields: dict[str, Any]) -> Pair:
    """A row as a pair.

    Raises:
        BadRow: It has none of the forms, or its answers are equal.
    """
    if fields.get("chosen") is None or fields.get("rejected") is None:
        raise BadRow("missing_columns", f"has {sorted(fields)}, wanted {PAIR_COLUMNS}")
    chosen, rejected = _dialogue(fields["chosen"]), _dialogue(fields["rejected"])
    if chosen == rejected:
        raise BadRow("equal_responses", "chosen and rejected are the same")
    prompt = conversation(fields["prompt"], "user") if fields.get("prompt") is not None else None
    prompt, good, bad = split_pair(prompt, chosen, rejected)
    if good == bad:
        raise BadRow("equal_responses", "chosen and rejected are the same")
    return Pair(prompt, [good], [bad])


def single_rating(fields: dict[str, Any]) -> tuple[list[Message], str, bool]:
    """A row's prompt, its response, and whether it was liked.

    Raises:
        BadRow: It is none, or lacks a column.
    """
    missing = [name for name in ("prompt", "completion", "label") if fields.get(name) is None]
    if missing:
        raise BadRow("missing_columns", f"has {sorted(fields)}, wanted {RATING_COLUMNS}")
    found = preferences_of({name: fields[name] for name in ("prompt", "completion", "label")})
    if not isinstance(found, Rating):
        raise BadRow("not_a_rating", f"is no single rating; wanted {RATING_COLUMNS}")
    return json.loads(found.prompt), found.completion, found.liked


def _dialogue(value: Any) -> list[Message]:
    turns = dialogue_turns(value) if isinstance(value, str) else None
    if turns is None:
        return conversation(value, "assistant")
    return [conversation(text, role)[0] for role, text in turns]
