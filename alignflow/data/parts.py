"""The parts of the data: which columns a row of each wants, and what it becomes. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from alignflow.data.demonstrations import (
    DEMONSTRATION_COLUMNS,
    demonstration,
    general_text,
    prompt_to_answer,
)
from alignflow.data.feedback import PAIR_COLUMNS, RATING_COLUMNS, pairs_of, single_rating
from alignflow.data.forms import recognised
from alignflow.data.rejected import BadRow
from alignflow.data.splits import is_for_training
from alignflow.data.tokens import Encoder, PairRow, PromptRow, RatedRow, TrainingRow
from alignflow.data.turns import Message, last_user_turn, normalised, transcript

Row = dict[str, Any]
DOCUMENT = ("input_ids", "text")
TRAINING_SPLIT = "training_split"
"""Why a row that is for training is not asked in an evaluation."""


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
    form: str | None = None
    """What it was recognised as."""
    unread: tuple[str, ...] = ()
    """Columns that hold something and were not read."""
    for_training: bool | None = None
    """What the row says itself, by its split."""

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
    wanted: str
    """What its rows are recognised as (`forms.FORMS`)."""
    columns: tuple[str, ...]
    """What is written of them."""
    form: Callable[[list[Row]], Formed]
    """From the canonical rows that one row says; raises BadRow."""
    is_limited: bool = False
    """Whether a row may be too long."""
    is_measured: bool = False
    """Whether a share of its rows is held out, and written."""
    is_judging: bool = False
    """Whether it is what models are measured with, so that nothing is held out of it."""


def formed(part: str, fields: Row, form: str | None = None) -> Formed:
    """A row in the form of a part. `form` is what the row is, where its columns do not tell.

    Raises:
        BadRow: It has none of the forms, or breaks the rules of one.
    """
    rules = PARTS[part]
    for_training = is_for_training(fields)
    if rules.is_judging and for_training:
        raise BadRow(TRAINING_SPLIT, f"split is {fields['split']!r}, and {part} only measures")
    told = recognised(fields, rules.wanted, form)
    group = {} if fields.get("group") is None else {"group": fields["group"]}
    rows = [{**row, **group} for row in told.rows]
    return rules.form(rows)._replace(form=told.form, unread=told.unread, for_training=for_training)


def _document(rows: list[Row]) -> Formed:
    text = general_text(rows[0])
    return Formed(
        lambda encoder: [{"input_ids": encoder.document(text), "text": text}],
        document=text,
        text=text,
    )


def _demonstration(rows: list[Row]) -> Formed:
    row = demonstration(rows[0])
    return Formed(
        lambda encoder: [part._asdict() for part in encoder.demonstrations(row)],
        row.messages,
        text=row.text,
        responses=sum(turn["role"] == "assistant" for turn in row.messages or []),
    )


def _pairs(rows: list[Row]) -> Formed:
    pairs = [pair for row in rows for pair in pairs_of(row)]
    prompts = [pair.prompt for pair in pairs]
    asked = prompts[0] if all(p == prompts[0] for p in prompts) else [t for p in prompts for t in p]
    return Formed(lambda encoder: [encoder.pair(*pair)._asdict() for pair in pairs], asked)


def _rating(rows: list[Row]) -> Formed:
    rated = single_rating(rows[0])
    return Formed(lambda encoder: [encoder.rated(*rated)._asdict()], rated.prompt)


def _prompt(rows: list[Row]) -> Formed:
    row = prompt_to_answer(rows[0], wants_target=False)
    return Formed(
        lambda encoder: [
            encoder.prompt(row.messages, row.tools)._asdict() | {"target": row.target}
        ],
        row.messages,
    )


def _evaluation(rows: list[Row]) -> Formed:
    row = prompt_to_answer(rows[0], wants_target=True)
    group = str(rows[0].get("group") or "all")
    normalised(group, "group")
    told = {
        "question": last_user_turn(row.messages),
        "conversation": transcript(row.messages),
        "target": row.target,
        "group": group,
    }
    return Formed(
        lambda encoder: [encoder.prompt(row.messages, row.tools)._asdict() | told], row.messages
    )


def _general(rows: list[Row]) -> Formed:
    text = general_text(rows[0])
    return Formed(lambda _: [{"text": text}], document=text)


PARTS = {
    "pretrain": Part("text", "text", DOCUMENT, _document, is_measured=True),
    "replay": Part("text", "text", DOCUMENT, _document),
    "sft": Part(
        DEMONSTRATION_COLUMNS, "demonstration", TrainingRow._fields, _demonstration, is_limited=True
    ),
    "preferences": Part(PAIR_COLUMNS, "pair", PairRow._fields, _pairs, True, True),
    "ratings": Part(RATING_COLUMNS, "rating", RatedRow._fields, _rating, True, True),
    "prompts": Part("prompt", "prompt", (*PromptRow._fields, "target"), _prompt, True, True),
    "evaluation": Part(
        "prompt and target",
        "judged prompt",
        (*PromptRow._fields, "question", "conversation", "target", "group"),
        _evaluation,
        is_judging=True,
    ),
    "general": Part("text", "text", ("text",), _general, is_judging=True),
}
"""The parts of `data`, by the names of its fields."""
