"""How a row of each part becomes columns of token ids, or is dropped, and whether it is held out.

Each function makes the form of one part from the encoder, what must not be trained on (`judged`,
first user turns or their sha256), the longest row in tokens, and the share that is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

from alignflow.data.forms import (
    DEMONSTRATION_COLUMNS,
    BadRow,
    Demonstration,
    demonstration,
    evaluation_prompt,
    first_user_turn,
    general_text,
    last_user_turn,
    training_prompt,
    transcript,
)
from alignflow.data.pairs import PAIR_COLUMNS, RATING_COLUMNS, preference_pair, single_rating
from alignflow.data.template import Message
from alignflow.data.tokens import Encoder

HELD_OUT = "held_out"
EVALUATION_PROMPT = "evaluation_prompt"
GENERAL_TEXT = "general_text"
COLUMNS = {
    "pretrain": "text",
    "replay": "text",
    "sft": DEMONSTRATION_COLUMNS,
    "preferences": PAIR_COLUMNS,
    "ratings": RATING_COLUMNS,
    "prompts": "prompt",
    "evaluation": "prompt and target",
    "general": "text",
}
"""Columns that each part of `data` wants, in words."""


class Kept(NamedTuple):
    """A row that is used."""

    columns: dict[str, Any]
    held_out: bool = False


Form = Callable[[dict[str, Any]], Kept]
"""From a row's fields; raises BadRow for a row that is dropped."""


def _is_judged(messages: list[Message], judged: set[str]) -> bool:
    turn = first_user_turn(messages)
    return turn in judged or hashlib.sha256(turn.encode()).hexdigest() in judged


def document_form(encoder: Encoder, measured: set[str], held_out_share: float) -> Form:
    """Documents of any length: the pretrain stage packs them."""

    def form(fields: dict[str, Any]) -> Kept:
        text = general_text(fields)
        if text in measured:
            raise BadRow(GENERAL_TEXT)
        encoded = encoder.demonstration(Demonstration(None, text))
        held_out = _is_held_out(fields, text, held_out_share)
        return Kept({"input_ids": encoded.input_ids, "text": text}, held_out)

    return form


def sft_form(encoder: Encoder, judged: set[str], limit: int | None) -> Form:
    """Demonstrations of at most `limit` tokens."""

    def form(fields: dict[str, Any]) -> Kept:
        row = demonstration(fields)
        if row.messages is not None and _is_judged(row.messages, judged):
            raise BadRow(EVALUATION_PROMPT)
        encoded = encoder.demonstration(row)
        _check_length(len(encoded.input_ids), limit)
        return Kept(encoded._asdict())

    return form


def pair_form(encoder: Encoder, judged: set[str], limit: int | None, held_out_share: float) -> Form:
    """Preference pairs whose longer side has at most `limit` tokens."""

    def form(fields: dict[str, Any]) -> Kept:
        pair = preference_pair(fields)
        if _is_judged(pair.prompt, judged):
            raise BadRow(EVALUATION_PROMPT)
        encoded = encoder.pair(*pair)
        longest = max(len(encoded.chosen_ids), len(encoded.rejected_ids))
        _check_length(len(encoded.prompt_ids) + longest, limit)
        return Kept(encoded._asdict(), _is_held_out(fields, _spoken(pair.prompt), held_out_share))

    return form


def rating_form(
    encoder: Encoder, judged: set[str], limit: int | None, held_out_share: float
) -> Form:
    """Single rated responses."""

    def form(fields: dict[str, Any]) -> Kept:
        prompt, completion, liked = single_rating(fields)
        if _is_judged(prompt, judged):
            raise BadRow(EVALUATION_PROMPT)
        encoded = encoder.rated(prompt, completion, liked)
        _check_length(len(encoded.prompt_ids) + len(encoded.completion_ids), limit)
        return Kept(encoded._asdict(), _is_held_out(fields, _spoken(prompt), held_out_share))

    return form


def prompt_form(
    encoder: Encoder, judged: set[str], limit: int | None, held_out_share: float
) -> Form:
    """Prompts to sample responses to."""

    def form(fields: dict[str, Any]) -> Kept:
        row = training_prompt(fields)
        if _is_judged(row.messages, judged):
            raise BadRow(EVALUATION_PROMPT)
        encoded = encoder.prompt(row.messages)
        _check_length(len(encoded.prompt_ids), limit)
        columns = {**encoded._asdict(), "target": row.target}
        return Kept(columns, _is_held_out(fields, _spoken(row.messages), held_out_share))

    return form


def evaluation_form(encoder: Encoder) -> Form:
    """Prompts that models are judged on."""

    def form(fields: dict[str, Any]) -> Kept:
        row = evaluation_prompt(fields)
        return Kept(
            {
                **encoder.prompt(row.messages)._asdict(),
                "question": last_user_turn(row.messages),
                "conversation": transcript(row.messages),
                "target": row.target,
                "group": row.group,
            }
        )

    return form


def _spoken(prompt: list[Message]) -> str:
    return "\n".join(f"{entry['role']}: {entry['content']}" for entry in prompt)


def _is_held_out(fields: dict[str, Any], text: str, share: float) -> bool:
    """By the row's own `split`, else by its text, so that a prompt is never on both sides."""
    if fields.get("split") is not None:
        return fields["split"] == HELD_OUT
    digest = hashlib.sha256(text.strip().casefold().encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _check_length(tokens: int, limit: int | None) -> None:
    if limit is not None and tokens > limit:
        raise BadRow("too_long", f"{tokens} tokens, at most {limit}")
