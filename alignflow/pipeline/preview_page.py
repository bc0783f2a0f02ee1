"""A recipe's data as a page: one file that needs nothing else, for what no terminal has room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from alignflow.data import NEAR, KnownTexts, Outcome
from alignflow.files import atomic_write_text
from alignflow.pipeline.page import page_of
from alignflow.pipeline.plot import histogram
from alignflow.pipeline.preview import Looking, PreviewedRow, looked_at, previewed
from alignflow.recipe import DataSource, Recipe

PAGE = "preview.html.j2"
LOOKED_AT = 10_000
"""Rows of a source that the page is about."""
EXAMPLES = 5
JUDGED = "evaluation"


class Pair(NamedTuple):
    """Two rows whose prompts are alike."""

    row: int
    text: str
    other_row: int
    other_text: str
    similarity: float


class Likes(NamedTuple):
    """Rows whose prompt was known before."""

    same: int
    near: int
    examples: list[Pair]
    """Of those that are near, else of the same."""


@dataclass
class Looked:
    """What was found in one source."""

    part: str
    source: str
    read: int = 0
    is_cut: bool = False
    """Whether it has more rows."""
    used: int = 0
    held_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, str] = field(default_factory=dict)
    """Reason to the first row that was dropped for it."""
    prompts: list[int] = field(default_factory=list)
    """Tokens."""
    responses: list[int] = field(default_factory=list)
    asked: dict[int, str] = field(default_factory=dict)
    """Number of a used row to its prompt, or its text where it has none."""
    shown: list[PreviewedRow] = field(default_factory=list)

    def add(self, number: int, outcome: Outcome) -> None:
        """Counts a row."""
        self.read = number
        if outcome.dropped is not None:
            self.dropped[outcome.dropped] += 1
            place = f"{outcome.row.place}: {outcome.message}"
            self.first_dropped.setdefault(outcome.dropped, place)
            return
        self.used += not outcome.held_out
        self.held_out += outcome.held_out
        self.asked[number] = outcome.question
        for columns in outcome.columns:
            prompt, responses = lengths_of(columns)
            self.prompts += prompt
            self.responses += responses


def write_preview(
    recipe: Recipe,
    file: Path,
    *,
    parts: Sequence[str] = (),
    rows: int = 3,
    home: Path | str | None = None,
) -> dict[str, Any]:
    """Writes the page of a recipe's data; returns how many rows were read, used, held out and dropped.

    Arguments and errors are those of `preview`.
    """
    looking = looked_at(recipe, parts, home)
    looked = [_look(part, source, looking, rows) for part, source in looking.sources]
    judged = [one for one in looked if one.part == JUDGED] or [
        _look(JUDGED, source, looking, 0) for source in recipe.data.evaluation
    ]
    counts = {
        "read": sum(one.read for one in looked),
        "used": sum(one.used for one in looked),
        "held_out": sum(one.held_out for one in looked),
        "dropped": sum(one.dropped.total() for one in looked),
    }
    text = page_of(
        PAGE,
        recipe=recipe,
        counts=counts,
        at_most=LOOKED_AT,
        near=NEAR,
        sources=[_described(one, judged, looking.rules.limits) for one in looked],
    )
    atomic_write_text(file, text)
    return counts


def _look(part: str, source: DataSource, looking: Looking, rows: int) -> Looked:
    """Reads a source once."""
    looked = Looked(part, source.source)
    for number, outcome in looking.outcomes(part, source, LOOKED_AT + 1):
        if number > LOOKED_AT:
            looked.is_cut = True
            break
        looked.add(number, outcome)
        if number <= rows:
            looked.shown += previewed(part, source.source, number, outcome, looking.encoder)
    return looked


def lengths_of(columns: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Tokens of the prompt and of each response in a row that is written; a text without one is a response."""
    if "input_ids" in columns:
        whole = len(columns["input_ids"])
        if "completion_mask" not in columns:
            return [], [whole]
        learnt = sum(columns["completion_mask"])
        return [whole - learnt], [learnt]
    ids = {name: len(value) for name, value in columns.items() if name.endswith("_ids")}
    prompt = [ids.pop("prompt_ids")] if "prompt_ids" in ids else []
    return prompt, list(ids.values())


def _described(looked: Looked, judged: Sequence[Looked], limits: Mapping[str, int | None]) -> Any:
    """What the page shows of a source."""
    lengths = {"prompts": looked.prompts, "responses": looked.responses}
    drawn = [
        {"name": name, "about": about(tokens), "svg": histogram(tokens)}
        for name, tokens in lengths.items()
        if tokens
    ]
    return {
        "looked": looked,
        "limit": limits.get(looked.part),
        "lengths": drawn,
        "repeats": within(looked),
        "judged": against(looked, judged) if looked.part != JUDGED else None,
    }


def about(tokens: Sequence[int]) -> str:
    """Where most lengths are."""
    ordered = sorted(tokens)
    high = ordered[min(len(ordered) * 95 // 100, len(ordered) - 1)]
    return f"median {median(ordered):g}, 95 % up to {high}, longest {ordered[-1]} tokens"


def within(looked: Looked) -> Likes:
    """Rows whose prompt, or a near one, an earlier row of the source has."""
    known, places = KnownTexts(), list(looked.asked)
    pairs = []
    for row, text in looked.asked.items():
        if text and (like := known.like(text)):
            other = places[like.place]
            pairs.append(Pair(row, text, other, looked.asked[other], like.similarity))
        known.add(text)
    return _likes(pairs)


def against(looked: Looked, judged: Sequence[Looked]) -> Likes:
    """Rows that are used and whose prompt is near one that models are judged on."""
    asked = [(row, text) for one in judged for row, text in one.asked.items() if text]
    known = KnownTexts()
    for _, text in asked:
        known.add(text)
    found = ((row, text, known.like(text)) for row, text in looked.asked.items() if text)
    return _likes(
        Pair(row, text, *asked[like.place], like.similarity) for row, text, like in found if like
    )


def _likes(pairs: Iterator[Pair] | Sequence[Pair]) -> Likes:
    listed = list(pairs)
    near = [pair for pair in listed if pair.similarity < 1]
    same = [pair for pair in listed if pair.similarity == 1]
    return Likes(len(same), len(near), [*near, *same][:EXAMPLES])
