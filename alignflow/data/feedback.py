"""Human feedback of every accepted form, brought to one: a prompt and two responses. No torch.

    prompt/chosen/rejected         text, Human:/Assistant: text, or chat messages
    chosen/rejected                whole dialogues that share their beginning
    prompt and responses           rated or ranked; every two that differ are a pair
    prompt/completion/label        one response, liked or not; `Rating` until it meets an opposite

The id of a pair is the sha256 of its canonical JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from itertools import combinations, pairwise
from json.encoder import encode_basestring as quoted
from typing import Any, NamedTuple

from alignflow.data.forms import ROLES, SHARE_GPT_ROLES, BadRow, first_user_turn

Message = dict[str, Any]

MAX_RESPONSES = 16
MAX_LABEL_CHARACTERS = 256
_TURN = re.compile(r"\n\n(Human|Assistant):")
_DIALOGUE_ROLES = {"Human": "user", "Assistant": "assistant"}
_META = {
    "annotator": ("annotator", "annotator_id"),
    "time": ("time", "timestamp", "created_at"),
    "source": ("source",),
    "model": ("model", "model_name"),
}
_RESPONSES = ("responses", "completions")
_SCORES = ("score", "rating", "overall_score", "scores", "ratings")
_RANKS = ("rank", "ranks", "ranking")
_TEXTS = ("content", "response", "text", "completion")
_LOST = ("tool_calls", "function_call", "images")


class Preference(NamedTuple):
    """One prompt, two responses; each text NFC-normalised, without space around it."""

    prompt: str
    """Canonical JSON of the messages before the response."""
    chosen: str
    rejected: str
    prompt_hash: bytes
    """sha256 of the normalised first user turn: what hold-outs are decided by."""


class Rating(NamedTuple):
    """One response that somebody liked, or not."""

    prompt: str
    completion: str
    liked: bool
    prompt_hash: bytes

    @property
    def id(self) -> bytes:
        """sha256 of the canonical rating."""
        label = "true" if self.liked else "false"
        text = f'{{"completion":{quoted(self.completion)},"label":{label},"prompt":{self.prompt}}}'
        return hashlib.sha256(text.encode()).digest()


class Observation(NamedTuple):
    """Who said so, where the row tells. Equal observations of a row are one vote."""

    annotator: str | None = None
    time: str | None = None
    source: str | None = None
    model: str | None = None

    @property
    def voter(self) -> bytes:
        """Names the observation among those of a row."""
        if self == _ANONYMOUS:
            return b"\0" * 8
        text = json.dumps(self, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).digest()[:8]


_ANONYMOUS = Observation()


def pair_ids(pair: Preference) -> tuple[bytes, bytes]:
    """sha256 of the canonical pair, and of the pair that says the contrary."""
    good, bad = quoted(pair.chosen), quoted(pair.rejected)
    return _pair_id(pair.prompt, good, bad), _pair_id(pair.prompt, bad, good)


def _pair_id(prompt: str, chosen: str, rejected: str) -> bytes:
    text = f'{{"chosen":{chosen},"prompt":{prompt},"rejected":{rejected}}}'
    return hashlib.sha256(text.encode()).digest()


def canonical_prompt(prompt: list[Message]) -> str:
    """JSON of the messages: keys sorted, no spaces, text as it is."""
    turns = (f'{{"content":{quoted(turn["content"])},"role":"{turn["role"]}"}}' for turn in prompt)
    return f"[{','.join(turns)}]"


def preferences_of(fields: dict[str, Any]) -> list[Preference] | Rating:
    """The pairs that a row says, at least one, or the rating that it is.

    Raises:
        BadRow: It has none of the forms, or breaks the rules of one. Nothing of it is used.
    """
    if fields.get("chosen") is not None or fields.get("rejected") is not None:
        return [_pair(fields)]
    responses = next((name for name in _RESPONSES if fields.get(name) is not None), None)
    if responses is not None:
        return _ranked(fields, responses)
    if fields.get("label") is not None or fields.get("completion") is not None:
        return _rating(fields)
    missing = [name for name in ("chosen", "rejected") if fields.get(name) is None]
    raise BadRow(
        f"missing:{missing[0]}",
        f"has {sorted(fields)[:12]}; wanted prompt, chosen, rejected; or chosen, rejected with whole "
        "dialogues; or prompt, responses, scores; or prompt, completion, label",
    )


def observation_of(fields: dict[str, Any]) -> Observation:
    """Who, when, whence and of which model, as far as the row says."""
    if _META_NAMES.isdisjoint(fields):
        return _ANONYMOUS
    return Observation(*(_label(fields, names) for names in _META.values()))


_META_NAMES = frozenset(name for names in _META.values() for name in names)


def _label(fields: dict[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = fields.get(name)
        if value is not None and not isinstance(value, (dict, list)):
            return _clean(str(value), name)[:MAX_LABEL_CHARACTERS] or None
    return None


def _pair(fields: dict[str, Any]) -> Preference:
    for name in ("chosen", "rejected"):
        if fields.get(name) is None:
            raise BadRow(f"missing:{name}", f"has {sorted(fields)[:12]}")
    chosen_value, rejected_value = fields["chosen"], fields["rejected"]
    plain = (fields.get("prompt"), chosen_value, rejected_value)
    if all(type(value) is str and not _is_dialogue(value) for value in plain):
        return _plain_pair(*plain)
    if type(chosen_value) is not type(rejected_value):
        raise BadRow(
            "mixed_format",
            f"chosen is {_kind(chosen_value)}, rejected is {_kind(rejected_value)}",
        )
    chosen, rejected = (
        _turns(value, "chosen", "assistant") for value in (chosen_value, rejected_value)
    )
    if chosen == rejected:
        raise BadRow("chosen_equals_rejected", "chosen and rejected are the same text")
    prompt = None
    if fields.get("prompt") is not None:
        prompt = without_open_turn(_turns(fields["prompt"], "prompt", "user"))
    return _checked(*split_pair(prompt, chosen, rejected))


def _plain_pair(prompt: Any, chosen: Any, rejected: Any) -> Preference:
    """The commonest form, one turn each; the general way gives the same."""
    turn = {"content": _text(prompt, "prompt"), "role": "user"}
    good, bad = _text(chosen, "chosen"), _text(rejected, "rejected")
    if good == bad:
        raise BadRow("chosen_equals_rejected", "chosen and rejected are the same text")
    return Preference(canonical_prompt([turn]), good, bad, prompt_hash([turn]))


def _checked(prompt: list[Message], chosen: Message, rejected: Message) -> Preference:
    check_order(prompt)
    if chosen["content"] == rejected["content"]:
        raise BadRow("chosen_equals_rejected", "chosen and rejected are the same text")
    return Preference(
        canonical_prompt(prompt), chosen["content"], rejected["content"], prompt_hash(prompt)
    )


def split_pair(
    prompt: list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], Message, Message]:
    """Prompt and the two responses, from a given prompt or the turns that the two share.

    Raises:
        BadRow: There is no prompt, or anything but one response after it.
    """
    if prompt is not None:
        chosen, rejected = _after(prompt, chosen), _after(prompt, rejected)
    else:
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise BadRow("missing:prompt", "no prompt, and chosen and rejected share no first turn")
    for answer in (chosen, rejected):
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise BadRow("no_response", "chosen and rejected must differ in one last response")
    return prompt, chosen[0], rejected[0]


def _is_dialogue(text: str) -> bool:
    return text.startswith(("Human:", "\n")) and text.lstrip("\n").startswith("Human:")


def dialogue_turns(text: str) -> list[tuple[str, str]] | None:
    """Roles and texts of a `Human:/Assistant:` dialogue; None of any other text."""
    if not _is_dialogue(text):
        return None
    parts = _TURN.split("\n\n" + text.lstrip("\n"))[1:]
    return [
        (_DIALOGUE_ROLES[name], body.strip())
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    ]


def without_open_turn(messages: list[Message]) -> list[Message]:
    """A prompt without the empty response that it ends in (a bare `Assistant:`)."""
    last = messages[-1]
    return messages[:-1] if last["role"] == "assistant" and not last["content"] else messages


def _after(prompt: list[Message], answer: list[Message]) -> list[Message]:
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer


def _turns(value: Any, field: str, role: str) -> list[Message]:
    """Messages of a field; a text is one turn, or a dialogue."""
    if isinstance(value, str):
        return _text_turns(value, field, role)
    if not isinstance(value, list):
        raise BadRow(f"type:{field}:{_kind(value)}", f"{field} is {_kind(value)}")
    if not value:
        raise BadRow(f"empty:{field}", f"{field} is an empty list")
    return [_message(entry, field) for entry in value]


def _text_turns(value: str, field: str, role: str) -> list[Message]:
    turns = dialogue_turns(value)
    if turns is None:
        return [{"content": _text(value, field), "role": role}]
    last = len(turns) - 1
    return [
        {
            "content": _clean(body, field)
            if number == last and field == "prompt" and speaker == "assistant"
            else _text(body, field),
            "role": speaker,
        }
        for number, (speaker, body) in enumerate(turns)
    ]


def _message(entry: Any, field: str) -> Message:
    if not isinstance(entry, dict):
        raise BadRow(f"type:{field}:{_kind(entry)}", f"a message of {field} is {_kind(entry)}")
    if "role" not in entry and "from" in entry:
        entry = {"role": SHARE_GPT_ROLES.get(str(entry["from"])), "content": entry.get("value")}
    role, content = entry.get("role"), entry.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow("role_order:unknown", f"role {role!r:.60}, wanted one of {', '.join(ROLES)}")
    for name in _LOST:
        if entry.get(name):
            raise BadRow(f"unsupported:{name}", f"a message of {field} has {name}")
    if not isinstance(content, str):
        raise BadRow(
            f"type:{field}:{_kind(content)}", f"content of a {role} turn is {_kind(content)}"
        )
    return {"content": _text(content, field), "role": role}


def _text(value: str, field: str) -> str:
    text = _clean(value, field)
    if not text:
        raise BadRow(f"empty:{field}", f"{field} has an empty text")
    return text


def _clean(value: str, field: str) -> str:
    if "\0" in value:
        raise BadRow("nul", f"{field} has a NUL character")
    if value.isascii():
        return value.strip()
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow("surrogate", f"{field} has half a surrogate pair") from error
    return unicodedata.normalize("NFC", value).strip()


def check_order(prompt: list[Message]) -> None:
    """Checks the turns before a response.

    Raises:
        BadRow: A chat template would refuse them, or train on something else.
    """
    if prompt[-1]["role"] == "assistant":
        raise BadRow("role_order:assistant_last", "the prompt ends with the assistant's turn")
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return
    turns = prompt[1:] if prompt[0]["role"] == "system" else prompt
    if any(entry["role"] == "system" for entry in turns):
        raise BadRow("role_order:system_not_first", "a system message is not the first")
    if not any(entry["role"] == "user" for entry in turns):
        raise BadRow("role_order:no_user", "the prompt has no user turn")
    for before, after in pairwise(turns):
        if before["role"] == after["role"] != "tool":
            raise BadRow("role_order:repeats", f"two {after['role']} turns follow each other")


def prompt_hash(prompt: list[Message]) -> bytes:
    """sha256 of the normalised first user turn."""
    return hashlib.sha256(first_user_turn(prompt).encode()).digest()


def _prompt_of(fields: dict[str, Any]) -> list[Message]:
    if fields.get("prompt") is None:
        raise BadRow("missing:prompt", f"has {sorted(fields)[:12]}")
    prompt = without_open_turn(_turns(fields["prompt"], "prompt", "user"))
    check_order(prompt)
    return prompt


def _rating(fields: dict[str, Any]) -> Rating:
    for name in ("completion", "label"):
        if fields.get(name) is None:
            raise BadRow(f"missing:{name}", f"has {sorted(fields)[:12]}")
    label = fields["label"]
    if not isinstance(label, bool) and label not in (0, 1):
        raise BadRow(f"type:label:{_kind(label)}", f"label is {label!r:.60}, wanted true or false")
    prompt = _prompt_of(fields)
    completion = _response(fields["completion"], "completion")
    return Rating(canonical_prompt(prompt), completion, bool(label), prompt_hash(prompt))


def _response(value: Any, field: str) -> str:
    turns = _turns(value, field, "assistant")
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise BadRow("no_response", f"{field} must be one response")
    return turns[0]["content"]


def _ranked(fields: dict[str, Any], name: str) -> list[Preference]:
    """Every two responses of which one is better."""
    prompt = _prompt_of(fields)
    entries = fields[name]
    if not isinstance(entries, list):
        raise BadRow(f"type:{name}:{_kind(entries)}", f"{name} is {_kind(entries)}")
    if len(entries) > MAX_RESPONSES:
        raise BadRow("too_many_responses", f"{len(entries)} responses, at most {MAX_RESPONSES}")
    values = _values(fields, entries)
    if len(values) != len(entries):
        raise BadRow("ranking_length", f"{len(entries)} responses, {len(values)} ranks or scores")
    texts = [_response(_body(entry), name) for entry in entries]
    encoded, hashed = canonical_prompt(prompt), prompt_hash(prompt)
    pairs = {}
    for (one, better), (other, worse) in combinations(zip(texts, values, strict=True), 2):
        if better == worse or one == other:
            continue
        chosen, rejected = (one, other) if better > worse else (other, one)
        pairs[chosen, rejected] = Preference(encoded, chosen, rejected, hashed)
    if not pairs:
        raise BadRow("no_preference", "no response is better than another")
    return list(pairs.values())


def _body(entry: Any) -> Any:
    if isinstance(entry, dict):
        return next((entry[name] for name in _TEXTS if entry.get(name) is not None), entry)
    return entry


def _values(fields: dict[str, Any], entries: list[Any]) -> list[float]:
    """One number a response, higher is better, from columns of the row or of the responses."""
    for names, sign in ((_SCORES, 1.0), (_RANKS, -1.0)):
        for name in names:
            if isinstance(fields.get(name), list):
                return [sign * _number(value, name) for value in fields[name]]
            if entries and all(isinstance(e, dict) and e.get(name) is not None for e in entries):
                return [sign * _number(entry[name], name) for entry in entries]
    raise BadRow("missing:scores", "responses without score, rating or rank")


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRow(f"type:{field}:{_kind(value)}", f"{field} has {value!r:.60}, wanted numbers")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRow("non_finite", f"{field} has a number that is not finite")
    return number


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
