"""Preference pairs as conversations. The forms themselves are known by `alignflow.preferences`."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from alignflow.data.forms import BadRow, conversation
from alignflow.data.template import Message

PAIR_COLUMNS = "prompt, chosen and rejected; or chosen and rejected that hold whole dialogues"
_TURN = re.compile(r"\n\n(Human|Assistant):")


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
    if fields.get("prompt") is not None:
        prompt = conversation(fields["prompt"], "user")
        chosen, rejected = _after(prompt, chosen), _after(prompt, rejected)
    else:
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        if shared == len(chosen) == len(rejected):
            raise BadRow("equal_responses", "chosen and rejected are the same")
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise BadRow("no_prompt", "chosen and rejected do not begin with the same turns")
    for answer in (chosen, rejected):
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise BadRow("no_response", "chosen and rejected must differ in one last response")
    if chosen == rejected:
        raise BadRow("equal_responses", "chosen and rejected are the same")
    return Pair(prompt, chosen, rejected)


def _dialogue(value: Any) -> list[Message]:
    if isinstance(value, str) and value.lstrip("\n").startswith("Human:"):
        parts = _TURN.split("\n\n" + value.lstrip("\n"))[1:]
        roles = {"Human": "user", "Assistant": "assistant"}
        return [
            conversation(text.strip(), roles[name])[0]
            for name, text in zip(parts[::2], parts[1::2], strict=True)
        ]
    return conversation(value, "assistant")


def _after(prompt: list[Message], answer: list[Message]) -> list[Message]:
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
