"""The forms a row may have, brought to one: a conversation, or plain text. No torch.

One function reads the turns of a text or of messages, for demonstrations, prompts, pairs and ratings;
pairs and ratings are in `alignflow.data.feedback`, which the ledger uses too.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

from alignflow.errors import AlignflowError

Message = dict[str, Any]

DEMONSTRATION_COLUMNS = "text; or prompt and completion; or messages"
ROLES = ("system", "user", "assistant", "tool")
SHARE_GPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
UNREADABLE = "unreadable"
MAX_MESSAGE_CHARACTERS = 300
_CALLS = ("tool_calls", "function_call", "images")
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_PLAIN_REASONS = {
    "type": "not_messages",
    "empty": "empty",
    "missing": "missing_columns",
    "role_order:unknown": "unknown_role",
    "chosen_equals_rejected": "equal_responses",
}
"""Reasons of the ledger, or how they begin, to what `prepare` and `check` count such rows under."""


class BadRow(Exception):
    """A row that is dropped. `reason` is what it is counted under; the message says more."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


@contextmanager
def one_row() -> Generator[None]:
    """Whatever goes wrong with a row costs that row, and no other.

    Raises:
        BadRow: Something of the row's went wrong.
    """
    try:
        yield
    except (BadRow, AlignflowError, MemoryError):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[:MAX_MESSAGE_CHARACTERS]
        raise BadRow(UNREADABLE, text) from error


@contextmanager
def plain_reasons() -> Generator[None]:
    """Counts a bad row under the fewer reasons of `prepare`; its message stays."""
    try:
        yield
    except BadRow as bad:
        begins = bad.reason.partition(":")[0]
        plain = _PLAIN_REASONS.get(bad.reason) or _PLAIN_REASONS.get(begins, bad.reason)
        raise BadRow(plain, str(bad)) from bad


class Turn(NamedTuple):
    """One turn of a conversation. The first three say whether two are the same."""

    role: str
    text: str
    """Normalised."""
    calls: dict[str, Any]
    """What it has beside text."""
    message: Message
    """As the row has it."""

    @property
    def said(self) -> tuple[Any, ...]:
        """What it is compared by."""
        return self[:3]


class Demonstration(NamedTuple):
    """What SFT trains on: a conversation that ends with a response, or plain text."""

    messages: list[Message] | None
    text: str | None = None


class Prompt(NamedTuple):
    """A prompt that is answered, and what its answer is judged or rewarded by, if anything."""

    messages: list[Message]
    target: str | None


@plain_reasons()
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
        return Demonstration(None, general_text(fields))
    raise missing_columns(fields, DEMONSTRATION_COLUMNS)


@plain_reasons()
def prompt_to_answer(fields: dict[str, Any], *, wants_target: bool) -> Prompt:
    """A row as a prompt to answer.

    Raises:
        BadRow: There is no prompt, or no target where it wants one.
    """
    prompt, target = fields.get("prompt", fields.get("messages")), fields.get("target")
    if prompt is None or (wants_target and target is None):
        raise missing_columns(fields, "prompt and target" if wants_target else "prompt")
    if target is not None:
        target = target if isinstance(target, str) else json.dumps(target, ensure_ascii=False)
        normalised(target, "target")
    return Prompt(conversation(prompt, "user"), target)


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
    return BadRow("missing_columns", f"has {sorted(fields)}, wanted {wanted}")


def conversation(value: Any, role: str = "user") -> list[Message]:
    """Messages from a text of one turn, or from a list of messages.

    Raises:
        BadRow: It is neither, or a turn is empty.
    """
    return [turn.message for turn in turns_of(value, role, role)]


def turns_of(value: Any, field: str, role: str, *, dialogues: bool = False) -> list[Turn]:
    """Turns of a field: a text is one, or a `Human:/Assistant:` dialogue, where it may be one.

    Raises:
        BadRow: It is neither text nor messages, or one of them has no text.
    """
    if isinstance(value, str):
        if dialogues and is_dialogue(value):
            return _dialogue(value, field)
        return [_text_turn(role, value, field)]
    if not isinstance(value, list):
        raise BadRow(
            f"type:{field}:{kind(value)}", f"{field} is {kind(value)}, not text or messages"
        )
    if not value:
        raise BadRow(f"empty:{field}", f"{field} is an empty list")
    return [_of_message(entry, field) for entry in value]


def written_text(text: str, field: str) -> str:
    """The text, normalised.

    Raises:
        BadRow: It is empty, or cannot be written.
    """
    clean = normalised(text, field)
    if not clean:
        raise BadRow(f"empty:{field}", f"{field} has an empty text")
    return clean


def _text_turn(role: str, text: str, field: str) -> Turn:
    return Turn(role, written_text(text, field), {}, {"role": role, "content": text})


def is_dialogue(text: str) -> bool:
    """Whether a text is turns that begin with `Human:` and `Assistant:`."""
    return text.startswith(("Human:", "\n")) and text.lstrip("\n").startswith("Human:")


def _dialogue(text: str, field: str) -> list[Turn]:
    """Its turns, of a prompt without the empty response that it may end in (a bare `Assistant:`)."""
    parts = _SPEAKER.split("\n\n" + text.lstrip("\n"))[1:]
    roles, bodies = [_SPEAKERS[name] for name in parts[::2]], parts[1::2]
    spoken = [(role, body.strip()) for role, body in zip(roles, bodies, strict=True)]
    is_open = field == "prompt" and spoken[-1] == ("assistant", "")
    return [_text_turn(role, body, field) for role, body in spoken[: -1 if is_open else None]]


def _of_message(entry: Any, field: str) -> Turn:
    if not isinstance(entry, dict):
        raise BadRow(f"type:{field}:{kind(entry)}", f"a message of {field} is {kind(entry)}")
    if "role" not in entry and "from" in entry:
        entry = {"role": SHARE_GPT_ROLES.get(str(entry["from"])), "content": entry.get("value")}
    role, content = entry.get("role"), entry.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow("role_order:unknown", f"role {role!r:.60}, wanted one of {', '.join(ROLES)}")
    calls = {name: entry[name] for name in _CALLS if entry.get(name)}
    if not isinstance(content, str):
        refuse_calls(calls, field)
        raise BadRow(
            f"type:{field}:{kind(content)}", f"content of a {role} turn is {kind(content)}"
        )
    message = {name: item for name, item in entry.items() if item is not None}
    return _text_turn(role, content, field)._replace(calls=calls, message=message)


def refuse_calls(calls: dict[str, Any], field: str) -> None:
    """Checks that a turn is text alone.

    Raises:
        BadRow: It is more.
    """
    for name in calls:
        raise BadRow(f"unsupported:{name}", f"a message of {field} has {name}")


def normalised(text: str, field: str) -> str:
    """The text in NFC, without space around it.

    Raises:
        BadRow: No file or database would take it.
    """
    if "\0" in text:
        raise BadRow("nul", f"{field} has a NUL character")
    if text.isascii():
        return text.strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("surrogate", f"{field} has half a surrogate pair") from error
    return unicodedata.normalize("NFC", text).strip()


def kind(value: Any) -> str:
    """Name of a value's type, for messages."""
    return "null" if value is None else type(value).__name__


def _ending_in_response(messages: list[Message]) -> list[Message]:
    if messages[-1]["role"] != "assistant":
        raise BadRow("no_response", f"the last message is the {messages[-1]['role']}'s")
    if len(messages) == 1:
        raise BadRow("no_prompt", "there is a response but no prompt")
    return messages


def first_user_turn(messages: list[Message]) -> str:
    """Text that tells whether two rows ask the same: the first user turn, normalised."""
    text = next((entry["content"] for entry in messages if entry["role"] == "user"), "")
    return same_question(text)


def same_question(text: str) -> str:
    """A user turn so that two which ask the same are equal."""
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold()


def last_user_turn(messages: list[Message]) -> str:
    """The question that is answered."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")


def transcript(messages: list[Message]) -> str:
    """A prompt as a person reads it: one turn as it is, several with who says what."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in messages)
