"""The parts of the data: which columns a row of each wants, and what it becomes. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from alignflow.data.feedback import PAIR_COLUMNS, RATING_COLUMNS, preference_pair, single_rating
from alignflow.data.forms import (
    DEMONSTRATION_COLUMNS,
    Message,
    demonstration,
    general_text,
    last_user_turn,
    normalised,
    prompt_to_answer,
    transcript,
)
from alignflow.data.tokens import Encoder


class Formed(NamedTuple):
    """A row in the form of its part."""

    columns: Callable[[Encoder], list[dict[str, Any]]]
    """Rows that are written of it, mostly one; columns that end in `_ids` are token ids."""
    prompt: list[Message] | None = None
    """Of a row that must not ask what is judged."""
    document: str | None = None
    """Of a row that must not be a text that forgetting is measured on."""
    text: str | None = None
    """Of a row that has no turns, and must not hold what is judged."""
    responses: int = 0
    """Assistant turns of a demonstration."""

    @property
    def said(self) -> str:
        """What it is held out by, so that a prompt is never on both sides."""
        if self.document is not None:
            return self.document
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.prompt or [])


class Part(NamedTuple):
    """What rows of one part of the data are."""

    wants: str
    """Its columns, in words."""
    form: Callable[[dict[str, Any]], Formed]
    """From a row's fields; raises BadRow for a row that has none of the forms."""
    is_limited: bool = False
    """Whether a row may be too long."""
    takes_splits: bool = False
    """Whether a row says itself that it is held out."""
    is_measured: bool = False
    """Whether a share of its rows is held out, and written."""


def _document(fields: dict[str, Any]) -> Formed:
    text = general_text(fields)
    return Formed(
        lambda encoder: [{"input_ids": encoder.document(text), "text": text}],
        document=text,
        text=text,
    )


def _demonstration(fields: dict[str, Any]) -> Formed:
    row = demonstration(fields)
    return Formed(
        lambda encoder: [part._asdict() for part in encoder.demonstrations(row)],
        row.messages,
        text=row.text,
        responses=sum(turn["role"] == "assistant" for turn in row.messages or []),
    )


def _pair(fields: dict[str, Any]) -> Formed:
    pair = preference_pair(fields)
    return Formed(lambda encoder: [encoder.pair(*pair)._asdict()], pair.prompt)


def _rating(fields: dict[str, Any]) -> Formed:
    rated = single_rating(fields)
    return Formed(lambda encoder: [encoder.rated(*rated)._asdict()], rated[0])


def _prompt(fields: dict[str, Any]) -> Formed:
    row = prompt_to_answer(fields, wants_target=False)
    return Formed(
        lambda encoder: [encoder.prompt(row.messages)._asdict() | {"target": row.target}],
        row.messages,
    )


def _evaluation(fields: dict[str, Any]) -> Formed:
    row = prompt_to_answer(fields, wants_target=True)
    group = str(fields.get("group") or "all")
    normalised(group, "group")
    told = {
        "question": last_user_turn(row.messages),
        "conversation": transcript(row.messages),
        "target": row.target,
        "group": group,
    }
    return Formed(lambda encoder: [encoder.prompt(row.messages)._asdict() | told], row.messages)


def _general(fields: dict[str, Any]) -> Formed:
    text = general_text(fields)
    return Formed(lambda _: [{"text": text}], document=text)


PARTS = {
    "pretrain": Part("text", _document, takes_splits=True, is_measured=True),
    "replay": Part("text", _document, takes_splits=True),
    "sft": Part(DEMONSTRATION_COLUMNS, _demonstration, is_limited=True),
    "preferences": Part(PAIR_COLUMNS, _pair, True, True, True),
    "ratings": Part(RATING_COLUMNS, _rating, True, True, True),
    "prompts": Part("prompt", _prompt, True, True, True),
    "evaluation": Part("prompt and target", _evaluation),
    "general": Part("text", _general),
}
"""The parts of `data`, by the names of its fields."""
