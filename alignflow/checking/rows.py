"""The data: sources, columns, forms, lengths, and the rows that would be left; read in a child."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field

from alignflow.checking.findings import Finding, advice, error, note, raised, warning
from alignflow.checking.sandbox import GIB, run_limited
from alignflow.data import (
    LIMITED_PARTS,
    TOO_LONG,
    Encoder,
    RawRow,
    Rules,
    SourceAccount,
    account_of,
    has_tokenizer,
    limits_of,
    nothing_left,
    outcome_of,
    plain_encoder,
    read_source,
    readers_of,
    rules_of,
    within_context,
)
from alignflow.errors import AlignflowError, DataError
from alignflow.recipe import (
    DATA_PARTS,
    DataSection,
    DataSource,
    ModelSource,
    Recipe,
    is_builtin,
    is_hub_id,
    is_ledger,
    matching_files,
)
from alignflow.settings import has_ledger
from alignflow.stages import Record, RowAccount

SAMPLE_ROWS = 1000
SAMPLE_SECONDS, FULL_SECONDS, MEMORY_BYTES = 120.0, 24 * 3600.0, 16 * GIB
FEWEST_UPDATES = 10


class SourceRows(Record):
    """What became of one source's rows."""

    part: str
    source: str
    read: int
    """Rows of the source, after its weight."""
    looked_at: int
    sampled: bool
    kept: int
    """Of those looked at: trained on or held out."""
    held_out: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    first_dropped: dict[str, str] = Field(default_factory=dict)
    """Reason to the first row dropped for it."""
    remedy: str = ""
    """What to write where no row has the columns of the part."""
    limit: int | None = None
    """Longest row that is kept, in tokens."""
    median_tokens: int | None = None
    p95_tokens: int | None = None
    longest_tokens: int | None = None
    over_limit: int = 0
    forms: dict[str, int] = Field(default_factory=dict)
    """Form to how many rows were recognised as it."""
    unread: list[str] = Field(default_factory=list)
    """Columns that were not read."""

    @property
    def account(self) -> SourceAccount:
        """Where the rows that were looked at went."""
        trained = self.kept - self.held_out
        rows = RowAccount(
            read=self.looked_at, trained=trained, held_out=self.held_out, dropped=self.dropped
        )
        return SourceAccount(self.part, self.source, rows, self.first_dropped, self.remedy)

    @property
    def expected(self) -> int:
        """Rows of the whole source that are trained on."""
        return round(self.read * self.account.rows.trained / self.looked_at)


def source_findings(recipe: Recipe) -> list[Finding]:
    """Sources that are not there, without reading any."""
    return [
        finding for part, source in _sources(recipe.data) for finding in _presence(part, source)
    ]


def _sources(data: DataSection) -> Iterator[tuple[str, DataSource]]:
    """Every source with the part of the data that it is of."""
    return ((part, source) for part in DATA_PARTS for source in getattr(data, part))


def _presence(part: str, source: DataSource) -> Iterator[Finding]:
    field = f"data.{part}"
    if is_builtin(source.source):
        from alignflow.builtin import names

        if source.source.removeprefix("builtin:") not in names():
            known = ", ".join(f"builtin:{name}" for name in names())
            yield error(field, f"{source.source!r} does not exist. There are {known}.")
    elif not is_elsewhere(source.source):
        try:
            matching_files(source.source, source.split)
        except DataError as problem:
            yield error(field, problem.message, DataError)


def is_elsewhere(source: str) -> bool:
    """Whether rows come from the Hub or the ledger, and are not read by a check."""
    return is_ledger(source) or is_hub_id(source)


def row_findings(
    recipe: Recipe, directory: Path | None, context: int | None, *, home: Path, full: bool
) -> tuple[list[SourceRows], list[Finding]]:
    """Accounts of the sources that are on this machine, and what is wrong with them.

    Without the tokenizer's `directory` forms are checked and lengths are not. `context` is the base
    model's, in tokens; the ledger of `home` holds prompts out; `full` is every row, not a sample.
    """
    later = "is read by `prepare`; its rows are not checked here."
    findings = [
        note(f"data.{part}", f"{source.source} {later}")
        for part, source in _sources(recipe.data)
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
        "model": recipe.base_model.model_dump(mode="json"),
    }
    try:
        payload["held_out"] = _held_out(home)
        answers = run_limited(
            "alignflow.checking.rows:look",
            payload,
            memory_bytes=MEMORY_BYTES,
            seconds=FULL_SECONDS if full else SAMPLE_SECONDS,
            what="Reading the rows",
        )
    except AlignflowError as problem:
        return [], [*findings, raised(problem)]
    accounts = [SourceRows(**answer) for answer in answers if "error" not in answer]
    for answer in answers:
        if "error" in answer:
            text = answer["error"].removeprefix(f"data.{answer['part']}: ")
            findings.append(error(f"data.{answer['part']}", text, DataError))
    findings += _form_findings(accounts)
    findings += _loss_findings(recipe, accounts)
    findings += _update_findings(recipe, accounts)
    return accounts, findings


def _form_findings(accounts: list[SourceRows]) -> Iterator[Finding]:
    """What the rows of each source were taken for, and which of their columns were not read."""
    for account in accounts:
        told = [f"form {name}" for name in account.forms if name not in _OWN_FORMS]
        if account.unread:
            told.append(f"columns not read: {', '.join(account.unread)}")
        if told:
            yield note(f"data.{account.part}", f"{account.source}: {'; '.join(told)}")


_OWN_FORMS = (
    *("messages", "prompt-completion", "text", "pairs", "ratings"),
    *("prompt", "prompt-target", "messages-target"),
)
"""Forms whose columns are ours, of which there is nothing to say."""


def _held_out(home: Path) -> list[str]:
    """sha256 of the first user turns that the home's ledger holds out."""
    if not has_ledger(home):
        return []  # SQLAlchemy stays unloaded
    from alignflow.ledger import held_out_hashes

    return held_out_hashes(home)


def _loss_findings(recipe: Recipe, accounts: list[SourceRows]) -> Iterator[Finding]:
    """What `prepare` would end with, or might, for the rows that it would lose."""
    for part in DATA_PARTS:
        mine = [account for account in accounts if account.part == part]
        allowed = recipe.data.max_dropped_share
        findings = [finding for account in mine for finding in _losses(account, allowed)]
        yield from findings
        is_whole = bool(mine) and len(mine) == len(getattr(recipe.data, part))
        if is_whole and all(finding.level != "error" for finding in findings):
            where = " and ".join(_where(account) for account in mine)
            problem = nothing_left([account.account for account in mine], where)
            if problem:
                yield error(f"data.{part}", problem, DataError)


def _losses(rows: SourceRows, allowed: float) -> Iterator[Finding]:
    field, account = f"data.{rows.part}", rows.account
    if account.lacks_columns:
        yield error(field, account.lacks_columns, DataError)
        return
    share = account.lost / rows.looked_at
    margin = 1.96 * math.sqrt(share * (1 - share) / rows.looked_at) if rows.sampled else 0.0
    if share - margin > allowed:
        yield error(field, account.loses(_where(rows), allowed), DataError)
    elif share + margin > allowed and account.lost:
        yield warning(field, account.loses(_where(rows), allowed))


def _where(rows: SourceRows) -> str:
    return f"a sample of {rows.looked_at:,} rows" if rows.sampled else f"{rows.looked_at} rows"


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
    data = DataSection.model_validate(payload["data"])

    def read(source: DataSource) -> list[RawRow]:
        try:
            there = not is_elsewhere(source.source)
            return list(read_source(source, seed=payload["seed"])) if there else []
        except DataError:
            return []  # said where the source itself is looked at

    rules = rules_of(
        data,
        read,
        encoder=_encoder(payload, data),
        limits=payload["limits"],
        held_out=payload["held_out"],
    )
    answers = []
    for part, source in _sources(data):
        if is_elsewhere(source.source):
            continue
        try:
            rows = list(read_source(source, seed=payload["seed"]))
            account = _account(part, source, rows, rules, payload["full"])
            answers.append(account.model_dump(mode="json"))
        except DataError as problem:
            answers.append({"part": part, "source": source.source, "error": problem.message})
    return answers


def _encoder(payload: dict[str, Any], data: DataSection) -> Encoder | None:
    if payload["tokenizer"] is None:
        return None
    model = ModelSource.model_validate(payload["model"])
    return plain_encoder(Path(payload["tokenizer"]), model, data.trained_turns)


def _account(
    part: str, source: DataSource, rows: list[RawRow], rules: Rules, full: bool
) -> SourceRows:
    sampled = not full and len(rows) > SAMPLE_ROWS
    chosen = Random(0).sample(rows, SAMPLE_ROWS) if sampled else rows
    outcomes = [outcome_of(part, row, rules)._replace(columns=[]) for row in chosen]
    account = account_of(part, source, outcomes)
    dropped = account.rows.dropped
    lengths = sorted(outcome.tokens for outcome in outcomes if outcome.tokens is not None)
    return SourceRows(
        part=part,
        source=source.source,
        read=len(rows),
        looked_at=len(chosen),
        sampled=sampled,
        kept=account.rows.trained + account.rows.held_out,
        held_out=account.rows.held_out,
        dropped=dict(sorted(dropped.items(), key=lambda entry: -entry[1])),
        first_dropped=account.first,
        remedy=account.remedy,
        limit=rules.limits.get(part),
        median_tokens=lengths[len(lengths) // 2] if lengths else None,
        p95_tokens=lengths[math.ceil(0.95 * len(lengths)) - 1] if lengths else None,
        longest_tokens=lengths[-1] if lengths else None,
        over_limit=dropped.get(TOO_LONG, 0),
        forms=dict(Counter(o.form for o in outcomes if o.form is not None).most_common()),
        unread=sorted({name for outcome in outcomes for name in outcome.unread}),
    )
