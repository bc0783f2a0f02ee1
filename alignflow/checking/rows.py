"""The data: sources, columns, forms, lengths, and the rows that would be left; read in a child."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field

from alignflow.checking.findings import Finding, advice, error, note, raised, warning
from alignflow.checking.sandbox import GIB, run_limited
from alignflow.checking.tokenizer import PlainTokenizer, has_tokenizer
from alignflow.data.forms import (
    BadRow,
    Demonstration,
    demonstration,
    evaluation_prompt,
    first_user_turn,
    general_text,
    training_prompt,
)
from alignflow.data.lengths import LIMITED_PARTS, limits_of, readers_of, within_context
from alignflow.data.pairs import preference_pair, single_rating
from alignflow.data.reading import RawRow, read_source
from alignflow.data.row_forms import COLUMNS, EVALUATION_PROMPT
from alignflow.data.template import load_template
from alignflow.data.tokens import Encoder
from alignflow.errors import AlignflowError, DataError
from alignflow.recipe import DATA_PARTS, DataSource, Recipe
from alignflow.recipe.names import is_builtin, is_hub_id, is_ledger, matching_files
from alignflow.stages.spec import Record

SAMPLE_ROWS = 1000
SAMPLE_SECONDS, FULL_SECONDS, MEMORY_BYTES = 120.0, 24 * 3600.0, 16 * GIB
FEWEST_UPDATES = 10
TOO_LONG, MISSING = "too_long", "missing_columns"


class SourceRows(Record):
    """What became of one source's rows."""

    part: str
    source: str
    read: int
    """Rows of the source, after its weight."""
    looked_at: int
    sampled: bool
    kept: int
    """Of those looked at."""
    dropped: dict[str, int] = Field(default_factory=dict)
    first_dropped: dict[str, str] = Field(default_factory=dict)
    """Reason to the first row dropped for it."""
    limit: int | None = None
    """Longest row that is kept, in tokens."""
    median_tokens: int | None = None
    p95_tokens: int | None = None
    longest_tokens: int | None = None
    over_limit: int = 0

    @property
    def expected(self) -> int:
        """Rows that are left of the whole source."""
        return round(self.read * self.kept / self.looked_at) if self.looked_at else 0


def source_findings(recipe: Recipe) -> list[Finding]:
    """Sources that are not there, without reading any."""
    return [
        finding
        for part in DATA_PARTS
        for source in getattr(recipe.data, part)
        for finding in _presence(part, source)
    ]


def _presence(part: str, source: DataSource) -> Iterator[Finding]:
    field = f"data.{part}"
    if is_builtin(source.source):
        from alignflow.builtin import names

        if source.source.removeprefix("builtin:") not in names():
            known = ", ".join(f"builtin:{name}" for name in names())
            yield error(field, f"{source.source!r} does not exist. There are {known}.")
    elif not is_elsewhere(source.source):
        try:
            matching_files(source.source)
        except DataError as problem:
            yield error(field, problem.message, DataError)


def is_elsewhere(source: str) -> bool:
    """Whether rows come from the Hub or the ledger, and are not read by a check."""
    return is_ledger(source) or is_hub_id(source)


def row_findings(
    recipe: Recipe, directory: Path | None, context: int | None, *, full: bool
) -> tuple[list[SourceRows], list[Finding]]:
    """Accounts of the sources that are on this machine, and what is wrong with them.

    Args:
        recipe: What to check.
        directory: Of the tokenizer; without one, forms are checked and lengths are not.
        context: Of the base model, in tokens.
        full: Look at every row, not at a sample.
    """
    findings = [
        note(
            f"data.{part}", f"{source.source} is read by `prepare`; its rows are not checked here."
        )
        for part in DATA_PARTS
        for source in getattr(recipe.data, part)
        if is_elsewhere(source.source)
    ]
    tokenizer = directory if directory is not None and has_tokenizer(directory) else None
    if tokenizer is None:
        findings.append(note("base_model", "has no tokenizer.json here, so rows are not measured."))
    payload = {
        "data": recipe.data.model_dump(mode="json"),
        "seed": recipe.seed,
        "full": full,
        "limits": within_context(limits_of(recipe), context),
        "tokenizer": str(tokenizer) if tokenizer else None,
        "template": recipe.base_model.chat_template,
    }
    try:
        answers = run_limited(
            "alignflow.checking.rows:look", payload, memory_bytes=MEMORY_BYTES,
            seconds=FULL_SECONDS if full else SAMPLE_SECONDS, what="Reading the rows",
        )  # fmt: skip
    except AlignflowError as problem:
        return [], [*findings, raised(problem)]
    accounts = [SourceRows(**answer) for answer in answers if "error" not in answer]
    for answer in answers:
        if "error" in answer:
            text = answer["error"].removeprefix(f"data.{answer['part']}: ")
            findings.append(error(f"data.{answer['part']}", text, DataError))
    for account in accounts:
        findings += _judged(account, recipe.data.max_dropped_share)
    findings += _update_findings(recipe, accounts)
    return accounts, findings


def _judged(account: SourceRows, allowed: float) -> Iterator[Finding]:
    field = f"data.{account.part}"
    if account.dropped.get(MISSING, 0) == account.looked_at:
        yield error(
            field,
            f"{account.source} lacks the columns {COLUMNS[account.part]} "
            f"({account.first_dropped[MISSING]}). Map its names in `columns`.",
            DataError,
        )
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in account.dropped.items())
    where = (
        f"a sample of {account.looked_at:,} rows"
        if account.sampled
        else f"{account.looked_at} rows"
    )
    if account.kept == 0:
        yield error(field, f"{account.source}: nothing is left of {where} ({reasons}).", DataError)
        return
    lost = sum(account.dropped.values()) - account.dropped.get(EVALUATION_PROMPT, 0)
    share = lost / account.looked_at
    margin = 1.96 * math.sqrt(share * (1 - share) / account.looked_at) if account.sampled else 0.0
    first = "; ".join(
        text for why, text in account.first_dropped.items() if why != EVALUATION_PROMPT
    )
    text = (
        f"{account.source} loses {lost} of {where} ({reasons}); data.max_dropped_share is "
        f"{allowed:g}. First of each kind: {first}. Repair the rows, raise max_length, or raise "
        "the share."
    )
    if share - margin > allowed:
        yield error(field, text, DataError)
    elif share + margin > allowed and lost:
        yield warning(field, text)


def _update_findings(recipe: Recipe, accounts: list[SourceRows]) -> Iterator[Finding]:
    """Stages that would make too few updates to learn anything."""
    for name, section in recipe.training_sections.items():
        part = next((part for part in LIMITED_PARTS if name in readers_of(part, recipe)), None)
        mine = [account for account in accounts if account.part == part]
        if part is None or not mine or len(mine) != len(getattr(recipe.data, part)):
            continue
        rows = sum(account.expected for account in mine)
        updates = section.max_steps or math.ceil(
            section.num_train_epochs * math.ceil(rows / section.batch_size)
        )
        if updates < FEWEST_UPDATES:
            yield advice(
                f"{name}.batch_size",
                f"is {section.batch_size}: {rows} rows make only {updates} updates. Lower it, or "
                "raise num_train_epochs.",
            )


def look(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Accounts of all local sources; runs in the child."""
    sources = {
        part: [
            source
            for entry in payload["data"][part]
            if not is_elsewhere((source := DataSource.model_validate(entry)).source)
        ]
        for part in DATA_PARTS
    }
    seed, full = payload["seed"], payload["full"]
    forms = _forms(payload, _judged_prompts(sources["evaluation"], seed))
    answers = []
    for part in DATA_PARTS:
        for source in sources[part]:
            limit = payload["limits"].get(part)
            try:
                rows = read_source(source, seed=seed)
                account = _account(part, source, rows, forms[part], limit, full)
                answers.append(account.model_dump(mode="json"))
            except DataError as problem:
                answers.append({"part": part, "source": source.source, "error": problem.message})
    return answers


def _judged_prompts(sources: list[DataSource], seed: int) -> set[str]:
    found = set()
    for source in sources:
        try:
            rows = read_source(source, seed=seed)
        except DataError:
            continue  # said where the source itself is looked at
        for row in rows:
            try:
                found.add(first_user_turn(evaluation_prompt(row.fields or {}).messages))
            except BadRow:
                continue
    return found


Form = Callable[[dict[str, Any]], int | None]
"""From a row to its tokens; None where there is no tokenizer."""


def _forms(payload: dict[str, Any], judged: set[str]) -> dict[str, Form]:
    encoder = None
    if payload["tokenizer"]:
        directory = Path(payload["tokenizer"])
        template = Path(payload["template"]) if payload["template"] else None
        encoder = Encoder(PlainTokenizer(directory), load_template(directory, template))

    def sft(fields: dict[str, Any]) -> int | None:
        row = demonstration(fields)
        if row.messages is not None and first_user_turn(row.messages) in judged:
            raise BadRow(EVALUATION_PROMPT)
        return len(encoder.demonstration(row).input_ids) if encoder else None

    def preferences(fields: dict[str, Any]) -> int | None:
        pair = preference_pair(fields)
        if first_user_turn(pair.prompt) in judged:
            raise BadRow(EVALUATION_PROMPT)
        if encoder is None:
            return None
        ids = encoder.pair(*pair)
        return len(ids.prompt_ids) + max(len(ids.chosen_ids), len(ids.rejected_ids))

    def evaluation(fields: dict[str, Any]) -> int | None:
        row = evaluation_prompt(fields)
        return len(encoder.prompt(row.messages).prompt_ids) if encoder else None

    def ratings(fields: dict[str, Any]) -> int | None:
        prompt, completion, liked = single_rating(fields)
        if first_user_turn(prompt) in judged:
            raise BadRow(EVALUATION_PROMPT)
        if encoder is None:
            return None
        ids = encoder.rated(prompt, completion, liked)
        return len(ids.prompt_ids) + len(ids.completion_ids)

    def prompts(fields: dict[str, Any]) -> int | None:
        row = training_prompt(fields)
        if first_user_turn(row.messages) in judged:
            raise BadRow(EVALUATION_PROMPT)
        return len(encoder.prompt(row.messages).prompt_ids) if encoder else None

    def general(fields: dict[str, Any]) -> int | None:
        general_text(fields)
        return None

    def document(fields: dict[str, Any]) -> int | None:
        row = Demonstration(None, general_text(fields))
        return len(encoder.demonstration(row).input_ids) if encoder else None

    return {
        "pretrain": document,
        "replay": document,
        "sft": sft,
        "preferences": preferences,
        "ratings": ratings,
        "prompts": prompts,
        "evaluation": evaluation,
        "general": general,
    }


def _account(
    part: str, source: DataSource, rows: list[RawRow], form: Form, limit: int | None, full: bool
) -> SourceRows:
    sampled = not full and len(rows) > SAMPLE_ROWS
    chosen = Random(0).sample(rows, SAMPLE_ROWS) if sampled else rows
    dropped: Counter[str] = Counter()
    first: dict[str, str] = {}
    lengths: list[int] = []
    for row in chosen:
        try:
            if row.fields is None:
                raise BadRow(row.problem or "unreadable")
            tokens = form(row.fields)
            if tokens is not None:
                lengths.append(tokens)
            if limit is not None and tokens is not None and tokens > limit:
                raise BadRow(TOO_LONG, f"{tokens} tokens, at most {limit}")
        except BadRow as bad:
            dropped[bad.reason] += 1
            first.setdefault(bad.reason, f"{row.place}: {bad}")
    lengths.sort()
    return SourceRows(
        part=part,
        source=source.source,
        read=len(rows),
        looked_at=len(chosen),
        sampled=sampled,
        kept=len(chosen) - dropped.total(),
        dropped=dict(dropped.most_common()),
        first_dropped=first,
        limit=limit,
        median_tokens=lengths[len(lengths) // 2] if lengths else None,
        p95_tokens=lengths[math.ceil(0.95 * len(lengths)) - 1] if lengths else None,
        longest_tokens=lengths[-1] if lengths else None,
        over_limit=dropped[TOO_LONG],
    )
