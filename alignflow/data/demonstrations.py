"""Canonical rows that are no feedback: a conversation that ends in a response, a prompt, a text. No torch."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from alignflow.data.calls import Tool, tools_of, written_calls
from alignflow.data.rejected import BadRow, plain_reasons
from alignflow.data.turns import (
    Message,
    normalised,
    turns_of,
    with_system,
    written_text,
)

DEMONSTRATION_COLUMNS = "text; or prompt and completion; or messages"


class Demonstration(NamedTuple):
    """What SFT trains on: a conversation that ends with a response, or plain text."""

    messages: list[Message] | None
    text: str | None = None
    tools: list[Tool] | None = None


class Prompt(NamedTuple):
    """A prompt that is answered, and what its answer is judged or rewarded by, if anything."""

    messages: list[Message]
    target: str | None
    tools: list[Tool] | None = None


@plain_reasons()
def demonstration(fields: dict[str, Any]) -> Demonstration:
    """A row of the columns messages, prompt and completion, or text, as a demonstration.

    Raises:
        BadRow: It has none of them, or nothing in it.
    """
    pair = [fields.get("prompt"), fields.get("completion")]
    if fields.get("messages") is None and None in pair:
        if not isinstance(fields.get("text"), str):
            raise missing_columns(fields, DEMONSTRATION_COLUMNS)
        return Demonstration(None, general_text(fields))
    messages = _spoken(fields)
    if messages[-1]["role"] != "assistant":
        raise BadRow("no_response", f"the last message is the {messages[-1]['role']}'s")
    if not any(turn["role"] != "assistant" for turn in messages):
        raise BadRow("no_prompt", "there is a response but no prompt")
    if all(turn.get("weight") == 0 for turn in messages if turn["role"] == "assistant"):
        raise BadRow("no_response", "every response has weight 0")
    return Demonstration(messages, tools=tools_of(fields.get("tools")))


def _spoken(fields: dict[str, Any]) -> list[Message]:
    if fields.get("messages") is not None:
        turns = turns_of(fields["messages"], "messages", "user")
    else:
        turns = turns_of(fields["prompt"], "prompt", "user")
        if fields.get("completion") is not None:
            turns += turns_of(fields["completion"], "completion", "assistant")
    return [turn.message for turn in with_system(turns, fields.get("system"))]


@plain_reasons()
def prompt_to_answer(fields: dict[str, Any], *, wants_target: bool) -> Prompt:
    """A row of the columns prompt or messages, and target, as a prompt to answer.

    Where there is no target, but a response to the prompt, it is the target; of one that calls tools,
    also among words, its calls are.

    Raises:
        BadRow: There is no prompt, or no target where it wants one.
    """
    if fields.get("prompt") is None and fields.get("messages") is None:
        raise missing_columns(fields, "prompt and target" if wants_target else "prompt")
    messages, target = _spoken(fields), fields.get("target")
    if target is None and len(messages) > 1 and messages[-1]["role"] == "assistant":
        *messages, answer = messages
        calls = answer.get("tool_calls")
        target = written_calls(calls) if calls else answer["content"]
    if target is None and wants_target:
        raise missing_columns(fields, "prompt and target")
    if target is not None:
        target = target if isinstance(target, str) else json.dumps(target, ensure_ascii=False)
        normalised(target, "target")
    return Prompt(messages, target, tools_of(fields.get("tools")))


@plain_reasons()
def general_text(fields: dict[str, Any]) -> str:
    """A row's general text.

    Raises:
        BadRow: There is none.
    """
    if not isinstance(fields.get("text"), str):
        raise missing_columns(fields, "text")
    written_text(fields["text"], "text")
    return fields["text"]


def missing_columns(fields: dict[str, Any], wanted: str) -> BadRow:
    """What to raise of a row that lacks the columns of its part."""
    return BadRow("missing_columns", f"has {columns_of(fields)}, wanted {wanted}")


def columns_of(fields: dict[str, Any]) -> str:
    """The names of a row's columns, those that hold nothing named as such."""
    names = sorted(fields)[:12]
    told = ", ".join(f"{n!r}: null" if fields[n] is None else repr(n) for n in names)
    return f"[{told}]" if len(fields) <= len(names) else f"[{told}, ...]"
