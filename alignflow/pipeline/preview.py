"""Rows as a model reads them, before anything is trained: token ids, where there is loss, what is dropped.

The rows, rules and ids are those of `prepare`. No weights are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.data import (
    Encoder,
    Outcome,
    Rules,
    context_length,
    fetch_base,
    has_tokenizer,
    outcome_of,
    plain_encoder,
    reader_of,
    rules_in_force,
    spoken,
)
from alignflow.errors import RecipeError
from alignflow.pipeline.plan import stage_spec
from alignflow.recipe import DATA_PARTS, DataSource, Recipe
from alignflow.settings import resolve_home
from alignflow.stages import PrepareParams, Record, StageSpec

LOOKED_AT = 1000
"""Rows of a source among which dropped ones are looked for."""
STRETCHES = {
    "prompt_ids": "prompt",
    "chosen_ids": "chosen",
    "rejected_ids": "rejected",
    "completion_ids": "completion",
}
"""Columns of a prompt and of what continues it, to what they are called."""


class Tokens(Record):
    """A stretch of tokens."""

    ids: list[int]
    tokens: list[str]
    """Text of each id."""
    loss: list[int] | None = None
    """1 where there is loss; None where that is not a matter of the row."""


class PreviewedRow(Record):
    """What becomes of a row."""

    part: str
    source: str
    row: int
    """Its number in the source, from 1."""
    dropped: str | None = None
    """Reason; None where it is used."""
    message: str = ""
    """Where it stands, and what is wrong with it."""
    held_out: bool = False
    texts: dict[str, Tokens] = {}  # noqa: RUF012 (pydantic copies it)
    """`row`, or `prompt` and what continues it."""
    text: str | None = None
    """Of a row that is no tokens yet."""

    def as_json(self) -> dict[str, Any]:
        """For a line of JSON: the tokens of a row that is one stretch stand in it itself."""
        head = self.model_dump(exclude={"texts"}, exclude_defaults=True)
        texts = {name: text.model_dump(exclude_none=True) for name, text in self.texts.items()}
        return head | texts.pop("row", {}) | texts


def preview(
    recipe: Recipe,
    *,
    parts: Sequence[str] = (),
    rows: int = 3,
    home: Path | str | None = None,
) -> Iterator[PreviewedRow]:
    """Rows of a recipe's data as the model reads them.

    Args:
        recipe: From `load_recipe`.
        parts: Parts of the data; none is all that the recipe has.
        rows: First rows of each source; the first that is dropped for each reason comes besides.
        home: Where the ledger is; None is ALIGNFLOW_HOME or `.alignflow`.

    Raises:
        RecipeError: The recipe has no such part, or its base model is not there.
        DataError: A source is not there, or there is no tokenizer.
    """
    looking = looked_at(recipe, parts, home)
    for part, source in looking.sources:
        yield from _source(part, source, looking, rows)


class Looking(NamedTuple):
    """Where rows are read, and what decides over them."""

    sources: list[tuple[str, DataSource]]
    """Part and source."""
    spec: StageSpec
    rules: Rules
    encoder: Encoder

    def outcomes(
        self, part: str, source: DataSource, at_most: int
    ) -> Iterator[tuple[int, Outcome]]:
        """What becomes of the first rows of a source, with their numbers from 1."""
        for number, row in enumerate(islice(reader_of(self.spec)(source), at_most), 1):
            yield number, outcome_of(part, row, self.rules)


def looked_at(recipe: Recipe, parts: Sequence[str], home: Path | str | None) -> Looking:
    """What `preview` reads: parts of the data, all if none are named.

    Raises:
        RecipeError: The recipe has no such part, or its base model is not there.
        DataError: A source is not there, or there is no tokenizer.
    """
    has = [part for part in DATA_PARTS if getattr(recipe.data, part)]
    for part in parts:
        if part not in has:
            raise RecipeError(f"data.{part}: the recipe has none. It has {', '.join(has)}.")
    spec = stage_spec(recipe, "prepare", resolve_home(home), {})
    base = fetch_base(
        PrepareParams.of(spec).base_model, spec.paths.get("base_model"), Path(spec.home)
    )
    encoder = _encoder(recipe, base)
    context = context_length(json.loads((base / "config.json").read_text()))
    rules = rules_in_force(spec, encoder, context)
    sources = [(part, source) for part in parts or has for source in getattr(recipe.data, part)]
    return Looking(sources, spec, rules, encoder)


def _encoder(recipe: Recipe, base: Path) -> Encoder:
    """As `prepare` has it; without Transformers where the tokenizer can be read without it."""
    turns = recipe.data.trained_turns
    if has_tokenizer(base):
        return plain_encoder(base, recipe.base_model, turns)
    return spoken(base, recipe.base_model).encoder(turns)


def _source(part: str, source: DataSource, looking: Looking, rows: int) -> Iterator[PreviewedRow]:
    """The first rows, and the first of each reason among those after them."""
    told: set[str] = set()
    for number, outcome in looking.outcomes(part, source, LOOKED_AT):
        if number > rows and (outcome.dropped is None or outcome.dropped in told):
            continue
        told |= {outcome.dropped} if outcome.dropped else set()
        yield from previewed(part, source.source, number, outcome, looking.encoder)


def previewed(
    part: str, source: str, number: int, outcome: Outcome, encoder: Encoder
) -> Iterator[PreviewedRow]:
    """A row as it is shown: dropped, or each row that is written of it."""
    where = {"part": part, "source": source, "row": number}
    if outcome.dropped is not None:
        message = f"{outcome.row.place}: {outcome.message}"
        yield PreviewedRow(**where, dropped=outcome.dropped, message=message)
    for columns in outcome.columns:
        texts = _texts(columns, encoder)
        text = None if texts else columns.get("text")
        yield PreviewedRow(**where, held_out=outcome.held_out, texts=texts, text=text)


def _texts(columns: dict[str, Any], encoder: Encoder) -> dict[str, Tokens]:
    """The stretches of tokens of what is written of a row."""
    if "input_ids" in columns:
        ids = columns["input_ids"]
        loss = columns.get("completion_mask", [1] * len(ids))
        return {"row": Tokens(ids=ids, tokens=encoder.texts(ids), loss=loss)}
    return {
        name: Tokens(ids=columns[column], tokens=encoder.texts(columns[column]))
        for column, name in STRETCHES.items()
        if column in columns
    }
