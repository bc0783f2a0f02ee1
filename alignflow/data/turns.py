"""Turns of a conversation, from a text or from messages as people's tools write them. No torch.

One function reads them, for demonstrations, prompts, pairs and ratings, in files and in the ledger.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, NamedTuple

from alignflow.data.calls import Call, calls_of, from_json, written_calls
from alignflow.data.rejected import BadRow, kind

Message = dict[str, Any]

ROLES = {
    **{name: name for name in ("system", "user", "assistant", "tool")},
    **{"human": "user", "prompter": "user"},
    **{"gpt": "assistant", "ai": "assistant", "function_call": "assistant"},
    "tool_call": "assistant",
    "developer": "system",
    **dict.fromkeys(("observation", "tool_response", "function"), "tool"),
}
"""What tools call a speaker, and what templates do."""
_CALLING = ("function_call", "tool_call")
_LANGCHAIN = ("human", "ai", "system", "tool", "function")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
TEXT_ALONE = "alignflow trains on text alone; leave such rows out"
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_TAG = "<image>"
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class Turn(NamedTuple):
    """One turn of a conversation. The first three say whether two are the same."""

    role: str
    text: str
    """Normalised."""
    calls: list[Call]
    """Of tools."""
    message: Message
    """As a template is given it: role, content that is text, `tool_calls`, and what else the row has."""

    @property
    def said(self) -> tuple[Any, ...]:
        """What it is compared by."""
        return self[:3]


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
    turns = [turn for entry in value if (turn := _of_message(entry, field)) is not None]
    if not turns:
        raise BadRow(f"empty:{field}", f"{field} has no messages")
    return turns


def conversation(value: Any, role: str = "user") -> list[Message]:
    """Messages from a text of one turn, or from a list of messages.

    Raises:
        BadRow: It is neither, or a turn is empty.
    """
    return [turn.message for turn in turns_of(value, role, role)]


def is_messages(value: Any) -> bool:
    """Whether it is a list of what could be messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(entry, dict) and ("role" in entry or "from" in entry) for entry in value)
    )


def written_text(text: str, field: str) -> str:
    """The text, normalised.

    Raises:
        BadRow: It is empty, or cannot be written.
    """
    clean = normalised(text, field)
    if not clean:
        raise BadRow(f"empty:{field}", f"{field} has an empty text")
    return clean


def spoken_text(text: str, field: str) -> str:
    """The text of a turn, normalised.

    Raises:
        BadRow: It is empty, cannot be written, or stands for an image.
    """
    if _IMAGE_TAG in text:
        raise BadRow("unsupported:images", f"{field} has {_IMAGE_TAG}; {TEXT_ALONE}")
    return written_text(text, field)


def _text_turn(role: str, text: str, field: str) -> Turn:
    return Turn(role, spoken_text(text, field), [], {"role": role, "content": text})


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


def _of_message(entry: Any, field: str) -> Turn | None:
    """The turn of a message; None for a system turn that says nothing."""
    if not isinstance(entry, dict):
        raise BadRow(f"type:{field}:{kind(entry)}", f"a message of {field} is {kind(entry)}")
    _refuse_media(entry, field)
    named, content = _speaker(entry)
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise BadRow(
            "role_order:unknown", f"role {named!r:.60} is unknown, wanted one of {', '.join(ROLES)}"
        )
    calls = _calls_in(entry, named, content, field)
    if named in _CALLING:
        content = None
    text = _content(content, role, field, may_be_empty=bool(calls))
    if role == "system" and not text.strip():
        return None
    rest = {name: item for name, item in entry.items() if name not in _READ and item is not None}
    message: Message = {"role": role, "content": text, **rest}
    if "weight" in entry:
        message |= _weight(entry["weight"], role, field)
    if calls:
        message["tool_calls"] = calls
    is_blank = (calls or role == "tool") and not text.strip()
    return Turn(role, "" if is_blank else spoken_text(text, field), calls, message)


_READ = {"role", "content", "from", "value", "tool_calls", "function_call", "weight", *MEDIA}
"""Of a message; what else it has is the template's."""


def _speaker(entry: dict[str, Any]) -> tuple[Any, Any]:
    """Who says a message, by the tool's own name, and its content."""
    if "role" not in entry and "from" in entry:
        return entry["from"], entry.get("value")
    if "role" not in entry and entry.get("type") in _LANGCHAIN:
        return entry["type"], entry.get("content")
    return entry.get("role"), entry.get("content")


def _refuse_media(entry: dict[str, Any], field: str) -> None:
    for name in MEDIA:
        if entry.get(name):
            raise BadRow(f"unsupported:{name}", f"a message of {field} has {name}; {TEXT_ALONE}")


def _calls_in(entry: dict[str, Any], named: Any, content: Any, field: str) -> list[Call]:
    if named in _CALLING:
        return calls_of(content, field)
    for name in ("tool_calls", "function_call"):
        if entry.get(name):
            if ROLES[named] != "assistant":
                raise BadRow(f"unsupported:{name}", f"a {named} turn of {field} has {name}")
            return calls_of(entry[name], name)
    return []


def _weight(value: Any, role: str, field: str) -> Message:
    """`weight: 0` of a response without loss; 1 and null say nothing."""
    if value is None or (not isinstance(value, bool) and value == 1):
        return {}
    if isinstance(value, bool) or value != 0:
        raise BadRow("weight", f"a message of {field} has weight {value!r:.60}, wanted 0 or 1")
    return {"weight": 0} if role == "assistant" else {}


def _content(content: Any, role: str, field: str, *, may_be_empty: bool) -> str:
    if content is None and may_be_empty:
        return ""
    if isinstance(content, list) and content:
        return "".join(_part(part, role, field) for part in content)
    if role == "tool" and isinstance(content, (dict, list, int, float)):
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, str):
        raise BadRow(
            f"type:{field}:{kind(content)}", f"content of a {role} turn is {kind(content)}"
        )
    return content


def _part(part: Any, role: str, field: str) -> str:
    if isinstance(part, str):
        return part
    name = part.get("type") if isinstance(part, dict) else None
    if name in _TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"]
    if role == "tool" and name is None:
        return json.dumps(part, ensure_ascii=False)
    raise BadRow(
        f"unsupported:{name or kind(part)}"[:60],
        f"a {role} turn of {field} has a part that is {name or kind(part)!r:.60}; {TEXT_ALONE}",
    )


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


def with_system(turns: list[Turn], system: Any) -> list[Turn]:
    """The turns after a system turn of the row's own column, where it has one.

    Raises:
        BadRow: It is no text, or they begin with another.
    """
    if system is None or (isinstance(system, str) and not system.strip()):
        return turns
    if not isinstance(system, str):
        raise BadRow(f"type:system:{kind(system)}", f"system is {kind(system)}, not text")
    first = _text_turn("system", system, "system")
    if turns[0].role != "system":
        return [first, *turns]
    if turns[0].text != first.text:
        raise BadRow("two_systems", "the column system and the first message say different things")
    return turns


def answer_text(message: Message) -> str:
    """What a response says, as a target has it: its text, or the JSON of its calls."""
    calls = message.get("tool_calls")
    return written_calls(calls) if calls and not message["content"].strip() else message["content"]


def messages_in(value: Any) -> Any:
    """Messages of a text that holds their JSON; any other value as it is."""
    parsed = from_json(value)
    if isinstance(parsed, dict) and is_messages([parsed]):
        parsed = [parsed]
    return parsed if parsed is not value and is_messages(parsed) else value


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
    return "\n\n".join(f"{turn['role'].capitalize()}: {answer_text(turn)}" for turn in messages)
