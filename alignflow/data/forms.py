"""The forms a row may have, brought to one: a conversation, or plain text. No torch.

Preference pairs have their own module, `alignflow.data.feedback`, which the ledger uses too.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any, NamedTuple

from alignflow.data.template import Message

DEMONSTRATION_COLUMNS = "text; or prompt and completion; or messages"
ROLES = ("system", "user", "assistant", "tool")


class BadRow(Exception):
    """A row that is dropped. `reason` is what it is counted under; the message says more."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class Demonstration(NamedTuple):
    """What SFT trains on: a conversation that ends with a response, or plain text."""

    messages: list[Message] | None
    text: str | None = None


class TrainingPrompt(NamedTuple):
    """A prompt that is answered in training, with what its answer is rewarded by, if anything."""

    messages: list[Message]
    target: str | None


class EvaluationPrompt(NamedTuple):
    """A prompt that is judged, with what its answer is judged by."""

    messages: list[Message]
    target: str
    group: str


def demonstration(fields: dict[str, Any]) -> Demonstration:
    """A row as a demonstration.

    Raises:
        BadRow: It has none of the forms, or nothing in it.
    """
    if fields.get("messages") is not None:
        return Demonstration(_ending_in_response(conversation(fields["messages"])))
    if fields.get("prompt") is not None and fields.get("completion") is not None:
        prompt = conversation(fields["prompt"], "user")
        return Demonstration(
            _ending_in_response([*prompt, *conversation(fields["completion"], "assistant")])
        )
    if isinstance(fields.get("text"), str):
        return Demonstration(None, _not_empty(fields["text"], "text"))
    raise BadRow("missing_columns", f"has {sorted(fields)}, wanted {DEMONSTRATION_COLUMNS}")


def evaluation_prompt(fields: dict[str, Any]) -> EvaluationPrompt:
    """A row as a prompt to judge on.

    Raises:
        BadRow: There is no prompt or target.
    """
    value = fields.get("prompt", fields.get("messages"))
    if value is None or fields.get("target") is None:
        raise BadRow("missing_columns", f"has {sorted(fields)}, wanted prompt and target")
    target = fields["target"]
    return EvaluationPrompt(
        conversation(value, "user"),
        target if isinstance(target, str) else json.dumps(target, ensure_ascii=False),
        str(fields.get("group") or "all"),
    )


def training_prompt(fields: dict[str, Any]) -> TrainingPrompt:
    """A row as a prompt to answer in training.

    Raises:
        BadRow: There is no prompt.
    """
    value = fields.get("prompt", fields.get("messages"))
    if value is None:
        raise BadRow("missing_columns", f"has {sorted(fields)}, wanted prompt")
    target = fields.get("target")
    if target is not None and not isinstance(target, str):
        target = json.dumps(target, ensure_ascii=False)
    return TrainingPrompt(conversation(value, "user"), target)


def general_text(fields: dict[str, Any]) -> str:
    """A row's general text.

    Raises:
        BadRow: There is none.
    """
    if not isinstance(fields.get("text"), str):
        raise BadRow("missing_columns", f"has {sorted(fields)}, wanted text")
    return _not_empty(fields["text"], "text")


def conversation(value: Any, role: str = "user") -> list[Message]:
    """Messages from a text of one turn, or from a list of messages.

    Raises:
        BadRow: It is neither, or a turn is empty.
    """
    if isinstance(value, str):
        return [{"role": role, "content": _not_empty(value, role)}]
    if not isinstance(value, list) or not value:
        raise BadRow("not_messages", f"{role} is a {type(value).__name__}, not text or messages")
    return [_message(entry) for entry in value]


def _message(entry: Any) -> Message:
    if not isinstance(entry, dict):
        raise BadRow("not_messages", f"a message is a {type(entry).__name__}, not an object")
    if "role" not in entry and "from" in entry:
        entry = {"role": SHARE_GPT_ROLES.get(entry["from"]), "content": entry.get("value")}
    role, content = entry.get("role"), entry.get("content")
    if role not in ROLES:
        raise BadRow("unknown_role", f"role {role!r}, wanted one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise BadRow("not_messages", f"the content of a {role} message is not text")
    kept = {name: item for name, item in entry.items() if item is not None}
    return {**kept, "content": _not_empty(content, role)}


SHARE_GPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def _ending_in_response(messages: list[Message]) -> list[Message]:
    if messages[-1]["role"] != "assistant":
        raise BadRow("no_response", f"the last message is the {messages[-1]['role']}'s")
    if len(messages) == 1:
        raise BadRow("no_prompt", "there is a response but no prompt")
    return messages


def _not_empty(text: str, what: str) -> str:
    if not text.strip():
        raise BadRow("empty", f"{what} is empty")
    return text


def first_user_turn(messages: list[Message]) -> str:
    """Text that tells whether two rows ask the same: the first user turn, normalised."""
    text = next((entry["content"] for entry in messages if entry["role"] == "user"), "")
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold()


def last_user_turn(messages: list[Message]) -> str:
    """The question that is answered."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")


def transcript(messages: list[Message]) -> str:
    """A prompt as a person reads it: one turn as it is, several with who says what."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in messages)
