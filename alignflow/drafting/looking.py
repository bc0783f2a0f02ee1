"""What each source of data is: its part, form, lengths and answers; read in a child."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field

from alignflow.checking import GIB, run_limited
from alignflow.data import (
    LIMITED_PARTS,
    BadRow,
    Encoder,
    Guess,
    RawRow,
    Rules,
    account_of,
    first_user_turn,
    further_columns,
    guessed,
    is_for_training,
    judged_prompts,
    outcome_of,
    plain_encoder,
    read_source,
    rules_of,
)
from alignflow.drafting.targets import Kind, kind_of
from alignflow.recipe import DataSection, DataSource, ModelSource
from alignflow.stages import Record

SAMPLE_ROWS = 1000
SECONDS, MEMORY_BYTES = 600.0, 64 * GIB
CHARACTERS_PER_TOKEN = 3


class Seen(Record):
    """What a source was taken for."""

    source: DataSource
    """With the columns and the form that its rows need to be named."""
    part: str | None
    """None where its rows are of none."""
    rows: int
    form: str | None = None
    lengths: list[int] = Field(default_factory=list)
    """Tokens of rows of a sample, shortest first; none where there is no tokenizer."""
    kind: Kind | None = None
    """What its answers are."""
    longest_target: int = 0
    """Tokens; of a sample."""
    prompts: int = 0
    """Different ones in the sample."""
    sampled: int = 0
    judging: int = 0
    """Rows of the sample whose own `split` keeps them from training."""
    dropped: dict[str, int] = Field(default_factory=dict)
    problem: str = ""
    """Why the first of those was dropped that were dropped most often, or what the rows lack."""
    names: list[str] = Field(default_factory=list)
    """Columns that hold text, of rows that lack what they need."""

    @property
    def lost(self) -> float:
        """Share of the sample that no stage could read."""
        return sum(self.dropped.values()) / max(self.sampled, 1)

    def length(self, share: float) -> int | None:
        """Tokens that this share of the rows has at most."""
        if not self.lengths:
            return None
        return self.lengths[min(int(share * len(self.lengths)), len(self.lengths) - 1)]


def look_at(
    sources: Sequence[DataSource], model: ModelSource, directory: Path | None, context: int | None
) -> list[Seen]:
    """What the sources are, in their order.

    Args:
        sources: Of which nothing else is known.
        model: Whose template rows go through.
        directory: Of its tokenizer; None where it is not on this machine.
        context: Longest text that the model reads.

    Raises:
        DataError: A source cannot be read.
    """
    payload = {
        "sources": [source.model_dump(mode="json") for source in sources],
        "model": model.model_dump(mode="json"),
        "tokenizer": str(directory) if directory else None,
        "context": context,
    }
    answers = run_limited(
        "alignflow.drafting.looking:look",
        payload,
        memory_bytes=MEMORY_BYTES,
        seconds=SECONDS,
        what="Reading the rows",
    )
    return [Seen.model_validate(answer) for answer in answers]


def look(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """The sources of `look_at`; runs in the child."""
    model = ModelSource.model_validate(payload["model"])
    place = Path(payload["tokenizer"]) if payload["tokenizer"] else None
    encoder = plain_encoder(place, model, "all") if place else None
    limits: dict[str, int | None] = dict.fromkeys(LIMITED_PARTS, payload["context"])
    rules = rules_of(DataSection(), lambda _: [], encoder=encoder, limits=limits, held_out=[])
    sources = [DataSource.model_validate(source) for source in payload["sources"]]
    return [_seen(source, rules).model_dump(mode="json") for source in sources]


def _seen(source: DataSource, rules: Rules) -> Seen:
    rows = list(read_source(source, seed=0))
    chosen = _sample(rows)
    guess = guessed([row.fields for row in chosen if row.fields is not None])
    if guess is None:
        return _unknown(source, chosen, rules)
    named = source.model_copy(
        update={
            "columns": further_columns(source.columns, guess.columns),
            "form": source.form or guess.form,
        }
    )
    told = list(read_source(named, seed=0)) if guess.columns or guess.form else rows
    return _measured(named, len(rows), _sample(told), guess, rules)


def _sample(rows: list[RawRow]) -> list[RawRow]:
    return Random(0).sample(rows, SAMPLE_ROWS) if len(rows) > SAMPLE_ROWS else rows


def _unknown(source: DataSource, rows: list[RawRow], rules: Rules) -> Seen:
    """Rows that are of no part, and why, taken as the demonstrations that they mostly are."""
    account = account_of("sft", source, [outcome_of("sft", row, rules) for row in rows[:50]])
    problem, names = account.lacks_columns, list[str]()
    if problem is not None:
        problem += " Or give --column OURS=THEIRS, as in `--column prompt=NAME`."
        fields = rows[0].fields or {}
        names = [name for name, value in fields.items() if isinstance(value, str)]
    problem = problem or account.loses(f"its first {account.rows.read} rows", 0)
    return Seen(source=source, part=None, rows=len(rows), problem=problem, names=names)


def _measured(
    source: DataSource, rows: int, sample: list[RawRow], guess: Guess, rules: Rules
) -> Seen:
    outcomes = [outcome_of(guess.part, row, rules) for row in sample]
    account = account_of(guess.part, source, outcomes)
    lengths = sorted(outcome.tokens for outcome in outcomes if outcome.tokens is not None)
    fields = [row.fields for row in sample if row.fields is not None]
    judged = judged_prompts(fields, source.form)
    targets = [prompt.target or "" for prompt in judged]
    most = max(account.rows.dropped, key=lambda name: account.rows.dropped[name], default="")
    return Seen(
        source=source,
        part=guess.part,
        rows=rows,
        form=next((outcome.form for outcome in outcomes if outcome.form), guess.form),
        lengths=lengths,
        kind=kind_of(targets) if targets else None,
        longest_target=max((_tokens(text, rules.encoder) for text in targets), default=0),
        prompts=len({first_user_turn(prompt.messages) for prompt in judged}),
        sampled=len(sample),
        judging=sum(_is_judging(row) for row in fields),
        dropped=account.rows.dropped,
        problem=account.first.get(most, ""),
    )


def _tokens(text: str, encoder: Encoder | None) -> int:
    """Of an answer, with what ends it; guessed where there is no tokenizer."""
    tokens = len(encoder.encode(text)) if encoder else len(text) // CHARACTERS_PER_TOKEN
    return tokens + 1


def _is_judging(fields: dict[str, Any]) -> bool:
    try:
        return is_for_training(fields) is False
    except BadRow:
        return False


def needs_template(seen: Sequence[Seen]) -> bool:
    """Whether most rows of a source are lost because the chat template has no place for them."""
    return any(one.dropped.get("template_rejects", 0) > one.sampled / 2 for one in seen)
