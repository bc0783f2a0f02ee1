"""Human feedback of every accepted form, brought to one: a prompt and two responses. No torch.

    prompt/chosen/rejected         text, Human:/Assistant: text, or chat messages
    chosen/rejected                whole dialogues that share their beginning
    prompt and responses           rated or ranked; every two that differ are a pair
    prompt/completion/label        one response, liked or not; `Rating` until it meets an opposite

What other columns say is brought to these by `forms`. The id of a pair is the sha256 of its canonical JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from itertools import combinations, pairwise
from json.encoder import encode_basestring as quoted
from typing import Any, NamedTuple

from alignflow.data.calls import Tool, from_json, tools_of
from alignflow.data.demonstrations import columns_of, missing_columns
from alignflow.data.forms import recognised
from alignflow.data.rejected import BadRow, kind, plain_reasons
from alignflow.data.splits import is_for_training
from alignflow.data.turns import (
    Message,
    Turn,
    first_user_turn,
    is_dialogue,
    normalised,
    spoken_text,
    turns_of,
    with_system,
)

PAIR_COLUMNS = "prompt, chosen and rejected; or chosen and rejected that hold whole dialogues"
RATING_COLUMNS = "prompt, completion and label"
MAX_RESPONSES = 16
MAX_LABEL_CHARACTERS = 256
_META = {
    "annotator": ("annotator", "annotator_id"),
    "time": ("time", "timestamp", "created_at"),
    "source": ("source",),
    "model": ("model", "model_name"),
}
_META_NAMES = frozenset(name for names in _META.values() for name in names)
_RESPONSES = ("responses", "completions")
_SCORES = ("score", "rating", "overall_score", "scores", "ratings")
_RANKS = ("rank", "ranks", "ranking")
_TEXTS = ("content", "response", "text", "completion")
_Pair = tuple[list[Turn], Turn, Turn]
_Turns = tuple[list[Turn], list[Turn], list[Turn]]


class Pair(NamedTuple):
    """One prompt, two answers, in the row's own words."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[Tool] | None = None
    """That both could call."""


class Rated(NamedTuple):
    """One prompt, one answer in the row's own words, and whether somebody liked it."""

    prompt: list[Message]
    completion: list[Message]
    liked: bool
    tools: list[Tool] | None = None


class Preference(NamedTuple):
    """One prompt, two responses; each text NFC-normalised, without space around it."""

    prompt: str
    """Canonical JSON of the messages before the response, and of the tools where there are some."""
    chosen: str
    """Its text; for a response that is more than text see `response_of`."""
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


def canonical_prompt(turns: list[Turn], tools: list[Tool] | None = None) -> str:
    """JSON of the messages: keys sorted, no spaces, text as it is; with tools, an object of both."""
    messages = f"[{','.join(map(_canonical_turn, turns))}]"
    return messages if tools is None else f'{{"messages":{messages},"tools":{_canonical(tools)}}}'


def _canonical_turn(turn: Turn) -> str:
    further = _further(turn)
    if not further:
        return f'{{"content":{quoted(turn.text)},"role":"{turn.role}"}}'
    return _canonical({"content": turn.text, "role": turn.role, **further})


def _further(turn: Turn) -> Message:
    """What a turn has that is neither role nor text, and that changes what is trained on."""
    names = [*_REASONING, *(_CALLED if turn.role == "tool" else ())]
    further = {name: turn.message[name] for name in names if turn.message.get(name)}
    return {**further, "tool_calls": turn.calls} if turn.calls else further


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


_REASONING = ("reasoning_content", "reasoning", "thinking")
_CALLED = ("name", "tool_call_id")


def _canonical_response(turn: Turn) -> str:
    """Its text; where it is more, a line break and its JSON, as no normalised text begins."""
    further = _further(turn)
    if not further:
        return turn.text
    return "\n" + _canonical({"content": turn.text, "role": turn.role, **further})


def response_of(text: str) -> Message:
    """The message of a response as the ledger keeps it."""
    if text.startswith("\n"):
        return json.loads(text)
    return {"role": "assistant", "content": text}


def prompt_of(text: str) -> tuple[list[Message], list[Tool] | None]:
    """Messages and tools of a prompt as the ledger keeps it."""
    prompt = json.loads(text)
    return (prompt["messages"], prompt["tools"]) if isinstance(prompt, dict) else (prompt, None)


def preferences_of(fields: dict[str, Any], form: str | None = None) -> list[Preference] | Rating:
    """The pairs that a row says, at least one, or the rating that it is.

    `form` is what the row is, where its columns do not tell.

    Raises:
        BadRow: It has none of the forms, or breaks the rules of one. Nothing of it is used.
    """
    if is_for_training(fields) is False:
        raise BadRow(
            "split:held_out",
            f"split is {fields['split']!r}: the ledger takes rows to train on, and draws its own "
            "hold-out",
        )
    first, *others = recognised(fields, "feedback", form).rows
    said = _said(first)
    if isinstance(said, Rating) or not others:
        return said
    further = [
        pair for row in others if not isinstance(pairs := _said(row), Rating) for pair in pairs
    ]
    return list(dict.fromkeys([*said, *further]))


def _said(row: dict[str, Any]) -> list[Preference] | Rating:
    """What a row of canonical columns says."""
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return [_preference(row)]
    if _responses_in(row) is not None:
        return [_canonical_pair(*pair, tools_of(row.get("tools"))) for pair in _ranked(row)]
    if row.get("label") is not None or row.get("completion") is not None:
        return _rating(row)
    missing = [name for name in ("chosen", "rejected") if row.get(name) is None]
    raise BadRow(
        f"missing:{missing[0]}",
        f"has {columns_of(row)}; wanted prompt, chosen, rejected; or chosen, rejected with whole "
        "dialogues; or prompt, responses, scores; or prompt, completion, label; or a form of "
        "docs/data.md",
    )


def observation_of(fields: dict[str, Any]) -> Observation:
    """Who, when, whence and of which model, as far as the row says."""
    if _META_NAMES.isdisjoint(fields):
        return _ANONYMOUS
    return Observation(*(_label(fields, names) for names in _META.values()))


def _label(fields: dict[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = fields.get(name)
        if value is not None and not isinstance(value, (dict, list)):
            return normalised(str(value), name)[:MAX_LABEL_CHARACTERS] or None
    return None


@plain_reasons()
def pairs_of(fields: dict[str, Any]) -> list[Pair]:
    """The pairs of a row of canonical columns, by the ledger's rules; texts stay as they are.

    Raises:
        BadRow: It says none, or its answers are equal.
    """
    if fields.get("chosen") is not None and fields.get("rejected") is not None:
        said = [_pair(fields)]
    elif _responses_in(fields) is not None:
        said = _ranked(fields)
    else:
        raise missing_columns(fields, PAIR_COLUMNS)
    tools = tools_of(fields.get("tools"))
    return [
        Pair([turn.message for turn in prompt], [chosen.message], [rejected.message], tools)
        for prompt, chosen, rejected in said
    ]


@plain_reasons()
def single_rating(fields: dict[str, Any]) -> Rated:
    """A row of canonical columns as a rating, by the ledger's rules; texts are normalised.

    Raises:
        BadRow: It is none, or lacks a column.
    """
    if any(fields.get(name) is None for name in ("prompt", "completion", "label")):
        raise missing_columns(fields, RATING_COLUMNS)
    prompt, answer, liked = _rated(fields)
    *asked, completion = [{**turn.message, "content": turn.text} for turn in (*prompt, answer)]
    return Rated(asked, [completion], liked, tools_of(fields.get("tools")))


def _pair(fields: dict[str, Any]) -> _Pair:
    """Prompt and the two responses, from a given prompt or the turns that the two share."""
    chosen, rejected = (_present(fields, name) for name in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise BadRow("mixed_format", f"chosen is {kind(chosen)}, rejected is {kind(rejected)}")
    good, bad = (
        turns_of(value, name, "assistant", dialogues=True)
        for name, value in (("chosen", chosen), ("rejected", rejected))
    )
    _check_unequal(good, bad)
    if fields.get("prompt") is not None:
        prompt = _given_prompt(fields)
        prompt, good, bad = _with_their_system(prompt, good, bad)
        good, bad = _after(prompt, good), _after(prompt, bad)
    else:
        shared = 0
        while shared < min(len(good), len(bad)) and good[shared].said == bad[shared].said:
            shared += 1
        prompt, good, bad = good[:shared], good[shared:], bad[shared:]
        prompt = with_system(prompt, fields.get("system")) if prompt else prompt
    if not prompt:
        raise BadRow("missing:prompt", "no prompt, and chosen and rejected share no first turn")
    _check_one_response(len(prompt), good, bad)
    check_order(prompt)
    _check_unequal(good, bad)
    return prompt, good[0], bad[0]


def _with_their_system(prompt: list[Turn], good: list[Turn], bad: list[Turn]) -> _Turns:
    """A system turn that both answers begin with, and the prompt does not, is the prompt's."""
    if prompt[0].role != "system" and good[0].role == "system" and good[0].said == bad[0].said:
        return [good[0], *prompt], good, bad
    return prompt, good, bad


def _check_one_response(shared: int, good: list[Turn], bad: list[Turn]) -> None:
    for name, answer in (("chosen", good), ("rejected", bad)):
        if len(answer) != 1:
            raise BadRow(
                "no_response",
                f"chosen and rejected must differ in one last response, and {name} goes on for "
                f"{len(answer)} turns after the {shared} of the prompt that both share",
            )
        _check_response(answer[0], name)


def _check_response(answer: Turn, name: str) -> None:
    if answer.role != "assistant":
        raise BadRow("no_response", f"{name} ends with the {answer.role}'s turn, wanted a response")
    if answer.message.get("weight") == 0:
        raise BadRow("weight", f"the response of {name} has weight 0")


def _present(fields: dict[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise BadRow(f"missing:{name}", f"has {columns_of(fields)}, wanted {name}")
    return fields[name]


def _check_unequal(chosen: list[Turn], rejected: list[Turn]) -> None:
    if [turn.said for turn in chosen] == [turn.said for turn in rejected]:
        raise _equal()


def _equal() -> BadRow:
    return BadRow("chosen_equals_rejected", "chosen and rejected are the same text")


def _given_prompt(fields: dict[str, Any]) -> list[Turn]:
    turns = turns_of(_present(fields, "prompt"), "prompt", "user", dialogues=True)
    return with_system(turns, fields.get("system"))


def _after(prompt: list[Turn], answer: list[Turn]) -> list[Turn]:
    """The answer without the prompt, where it begins with that."""
    own = prompt[1:] if prompt[0].role == "system" and answer[0].role != "system" else prompt
    begins = [turn.said for turn in answer[: len(own)]] == [turn.said for turn in own]
    return answer[len(own) :] if begins else answer


def _preference(fields: dict[str, Any]) -> Preference:
    said: list[Any] = [fields.get(name) for name in ("prompt", "chosen", "rejected")]
    plain = (
        all(type(value) is str and not is_dialogue(value) for value in said)
        and fields.get("system") is None
        and fields.get("tools") is None
    )
    if not plain:
        return _canonical_pair(*_pair(fields), tools_of(fields.get("tools")))
    # The commonest form, one turn each, in half the time; the general way gives the same.
    asked, chosen, rejected = map(spoken_text, said, ("prompt", "chosen", "rejected"))
    if chosen == rejected:
        raise _equal()
    hashed = prompt_hash([{"content": asked, "role": "user"}])
    prompt = f'[{{"content":{quoted(asked)},"role":"user"}}]'
    return Preference(prompt, chosen, rejected, hashed)


def _canonical_pair(
    prompt: list[Turn], chosen: Turn, rejected: Turn, tools: list[Tool] | None
) -> Preference:
    return Preference(
        canonical_prompt(prompt, tools),
        _canonical_response(chosen),
        _canonical_response(rejected),
        _hash_of(prompt),
    )


def _hash_of(prompt: list[Turn]) -> bytes:
    return prompt_hash([{"content": turn.text, "role": turn.role} for turn in prompt])


def check_order(prompt: list[Turn]) -> None:
    """Checks the turns before a response.

    Raises:
        BadRow: A chat template would refuse them, or train on something else.
    """
    if prompt[-1].role == "assistant":
        raise BadRow("role_order:assistant_last", "the prompt ends with the assistant's turn")
    if len(prompt) == 1 and prompt[0].role == "user":
        return
    turns = prompt[1:] if prompt[0].role == "system" else prompt
    if any(entry.role == "system" for entry in turns):
        raise BadRow("role_order:system_not_first", "a system message is not the first")
    if not any(entry.role == "user" for entry in turns):
        raise BadRow("role_order:no_user", "the prompt has no user turn")
    for before, after in pairwise(turns):
        if before.role == after.role != "tool":
            raise BadRow("role_order:repeats", f"two {after.role} turns follow each other")


def prompt_hash(prompt: list[Message]) -> bytes:
    """sha256 of the normalised first user turn."""
    return hashlib.sha256(first_user_turn(prompt).encode()).digest()


def _rated(fields: dict[str, Any]) -> tuple[list[Turn], Turn, bool]:
    completion, label = (_present(fields, name) for name in ("completion", "label"))
    liked = _LABELS.get(label.strip().lower()) if isinstance(label, str) else None
    if liked is None:
        if not isinstance(label, bool) and label not in (0, 1):
            raise BadRow(
                f"type:label:{kind(label)}", f"label is {label!r:.60}, wanted true or false"
            )
        liked = bool(label)
    prompt = _given_prompt(fields)
    check_order(prompt)
    answer = turns_of(completion, "completion", "assistant", dialogues=True)
    answer = _after(prompt, answer)
    if len(answer) != 1:
        raise BadRow("no_response", "completion must be one response")
    _check_response(answer[0], "completion")
    return prompt, answer[0], liked


_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
"""How a table writes them."""


def _rating(fields: dict[str, Any]) -> Rating:
    prompt, answer, liked = _rated(fields)
    asked = canonical_prompt(prompt, tools_of(fields.get("tools")))
    return Rating(asked, _canonical_response(answer), liked, _hash_of(prompt))


def _response(value: Any, field: str) -> Turn:
    answer = turns_of(value, field, "assistant", dialogues=True)
    if len(answer) != 1:
        raise BadRow("no_response", f"{field} must be one response")
    _check_response(answer[0], field)
    return answer[0]


def _responses_in(row: dict[str, Any]) -> str | None:
    return next((name for name in _RESPONSES if row.get(name) is not None), None)


def _ranked(fields: dict[str, Any]) -> list[_Pair]:
    """Every two responses of which one is better."""
    name = _responses_in(fields) or _RESPONSES[0]
    prompt = _given_prompt(fields)
    check_order(prompt)
    entries = from_json(fields[name])
    if not isinstance(entries, list):
        raise BadRow(f"type:{name}:{kind(entries)}", f"{name} is {kind(entries)}")
    if len(entries) > MAX_RESPONSES:
        raise BadRow("too_many_responses", f"{len(entries)} responses, at most {MAX_RESPONSES}")
    values = _values(fields, entries)
    if len(values) != len(entries):
        raise BadRow("ranking_length", f"{len(entries)} responses, {len(values)} ranks or scores")
    turns = [_response(_body(entry), name) for entry in entries]
    pairs: dict[tuple[str, str], _Pair] = {}
    for (one, better), (other, worse) in combinations(zip(turns, values, strict=True), 2):
        if better == worse or one.said == other.said:
            continue
        chosen, rejected = (one, other) if better > worse else (other, one)
        said = (_canonical_response(chosen), _canonical_response(rejected))
        pairs[said] = (prompt, chosen, rejected)
    if not pairs:
        raise BadRow("no_preference", "no response is better than another")
    return list(pairs.values())


def _body(entry: Any) -> Any:
    """A response: its text, or as messages."""
    if isinstance(entry, dict) and ("role" in entry or "from" in entry):
        return [entry]
    if isinstance(entry, dict):
        return next((entry[name] for name in _TEXTS if entry.get(name) is not None), entry)
    return entry


def _values(fields: dict[str, Any], entries: list[Any]) -> list[float]:
    """One number a response, higher is better, from columns of the row or of the responses."""
    for names, sign in ((_SCORES, 1.0), (_RANKS, -1.0)):
        for name in names:
            column = from_json(fields.get(name))
            if isinstance(column, list):
                return [sign * _number(value, name) for value in column]
            if entries and all(isinstance(e, dict) and e.get(name) is not None for e in entries):
                return [sign * _number(entry[name], name) for entry in entries]
    raise BadRow("missing:scores", "responses without score, rating or rank")


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRow(f"type:{field}:{kind(value)}", f"{field} has {value!r:.60}, wanted numbers")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRow("non_finite", f"{field} has a number that is not finite")
    return number
