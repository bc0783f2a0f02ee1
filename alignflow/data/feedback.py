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
from itertools import combinations, pairwise
from json.encoder import encode_basestring as quoted
from typing import Any, NamedTuple

from alignflow.data.forms import (
    BadRow,
    Message,
    Turn,
    first_user_turn,
    is_dialogue,
    kind,
    missing_columns,
    normalised,
    plain_reasons,
    refuse_calls,
    turns_of,
    written_text,
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


class Pair(NamedTuple):
    """One prompt, two answers, in the row's own words."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


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
        return [_canonical_pair(fields)]
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


def _label(fields: dict[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = fields.get(name)
        if value is not None and not isinstance(value, (dict, list)):
            return normalised(str(value), name)[:MAX_LABEL_CHARACTERS] or None
    return None


@plain_reasons()
def preference_pair(fields: dict[str, Any]) -> Pair:
    """A row as a pair, by the ledger's rules; its texts stay as they are.

    Raises:
        BadRow: It has none of the forms, or its answers are equal.
    """
    if fields.get("chosen") is None or fields.get("rejected") is None:
        raise missing_columns(fields, PAIR_COLUMNS)
    prompt, chosen, rejected = _pair(fields)
    return Pair([turn.message for turn in prompt], [chosen.message], [rejected.message])


def single_rating(fields: dict[str, Any]) -> tuple[list[Message], str, bool]:
    """A row's prompt, its response, and whether it was liked.

    Raises:
        BadRow: It is none, or lacks a column.
    """
    if any(fields.get(name) is None for name in ("prompt", "completion", "label")):
        raise missing_columns(fields, RATING_COLUMNS)
    rating = _rating(fields)
    return json.loads(rating.prompt), rating.completion, rating.liked


def _pair(fields: dict[str, Any]) -> tuple[list[Turn], Turn, Turn]:
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
        good, bad = _after(prompt, good), _after(prompt, bad)
    else:
        shared = 0
        while shared < min(len(good), len(bad)) and good[shared].said == bad[shared].said:
            shared += 1
        prompt, good, bad = good[:shared], good[shared:], bad[shared:]
    if not prompt:
        raise BadRow("missing:prompt", "no prompt, and chosen and rejected share no first turn")
    for answer in (good, bad):
        if len(answer) != 1 or answer[0].role != "assistant":
            raise BadRow("no_response", "chosen and rejected must differ in one last response")
    check_order(prompt)
    _check_unequal(good, bad)
    return prompt, good[0], bad[0]


def _present(fields: dict[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise BadRow(f"missing:{name}", f"has {sorted(fields)[:12]}")
    return fields[name]


def _check_unequal(chosen: list[Turn], rejected: list[Turn]) -> None:
    if [turn.said for turn in chosen] == [turn.said for turn in rejected]:
        raise _equal()


def _equal() -> BadRow:
    return BadRow("chosen_equals_rejected", "chosen and rejected are the same text")


def _given_prompt(fields: dict[str, Any]) -> list[Turn]:
    return turns_of(_present(fields, "prompt"), "prompt", "user", dialogues=True)


def _after(prompt: list[Turn], answer: list[Turn]) -> list[Turn]:
    begins = [turn.said for turn in answer[: len(prompt)]] == [turn.said for turn in prompt]
    return answer[len(prompt) :] if begins else answer


def _canonical_pair(fields: dict[str, Any]) -> Preference:
    plain: list[Any] = [fields.get(name) for name in ("prompt", "chosen", "rejected")]
    if all(type(value) is str and not is_dialogue(value) for value in plain):
        # The commonest form, one turn each, in half the time; the general way gives the same.
        asked, chosen, rejected = map(written_text, plain, ("prompt", "chosen", "rejected"))
        if chosen == rejected:
            raise _equal()
        messages: list[Message] = [{"content": asked, "role": "user"}]
    else:
        prompt, good, bad = _pair(fields)
        for name, turn in (("chosen", good), ("rejected", bad)):
            refuse_calls(turn.calls, name)
        messages, chosen, rejected = _texts_of(prompt), good.text, bad.text
    return Preference(canonical_prompt(messages), chosen, rejected, prompt_hash(messages))


def _texts_of(prompt: list[Turn]) -> list[Message]:
    """Turns as messages of normalised text and nothing else."""
    for turn in prompt:
        refuse_calls(turn.calls, "prompt")
    return [{"content": turn.text, "role": turn.role} for turn in prompt]


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


def _prompt_of(fields: dict[str, Any]) -> list[Message]:
    prompt = _given_prompt(fields)
    check_order(prompt)
    return _texts_of(prompt)


def _rating(fields: dict[str, Any]) -> Rating:
    completion, label = (_present(fields, name) for name in ("completion", "label"))
    if not isinstance(label, bool) and label not in (0, 1):
        raise BadRow(f"type:label:{kind(label)}", f"label is {label!r:.60}, wanted true or false")
    prompt = _prompt_of(fields)
    response = _response(completion, "completion")
    return Rating(canonical_prompt(prompt), response, bool(label), prompt_hash(prompt))


def _response(value: Any, field: str) -> str:
    answer = turns_of(value, field, "assistant", dialogues=True)
    if len(answer) != 1 or answer[0].role != "assistant":
        raise BadRow("no_response", f"{field} must be one response")
    refuse_calls(answer[0].calls, field)
    return answer[0].text


def _ranked(fields: dict[str, Any], name: str) -> list[Preference]:
    """Every two responses of which one is better."""
    prompt = _prompt_of(fields)
    entries = fields[name]
    if not isinstance(entries, list):
        raise BadRow(f"type:{name}:{kind(entries)}", f"{name} is {kind(entries)}")
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
        raise BadRow(f"type:{field}:{kind(value)}", f"{field} has {value!r:.60}, wanted numbers")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRow("non_finite", f"{field} has a number that is not finite")
    return number
