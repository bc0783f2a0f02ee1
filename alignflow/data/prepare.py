"""Stage `prepare`: base model and rows become token ids, each row accounted for.

    sources -> rows -> conversations -> token ids -> training, held-out, evaluation, general

A bad or too long row is dropped and counted by reason, never cut. Rows in which a user turn is an
evaluation prompt's first one, or held out by the ledger, are dropped from training, whatever source
they stand in, and so are texts that hold one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.data.base import describe_base, fetch_base, save_spoken
from alignflow.data.gguf_base import dequantized_from
from alignflow.data.lengths import within_context
from alignflow.data.parts import PARTS
from alignflow.data.reading import read_source
from alignflow.data.rows import Read, Rules, account_of, nothing_left, outcome_of, reasons, rules_of
from alignflow.data.tokens import Encoder
from alignflow.errors import DataError
from alignflow.files import atomic_write_json
from alignflow.recipe import DATA_PARTS, DataSection, is_ledger
from alignflow.stages import (
    EventWriter,
    Prepared,
    PrepareParams,
    RowAccount,
    StageResult,
    StageSpec,
)

Rows = list[dict[str, Any]]


class Collected(NamedTuple):
    """All rows of a part."""

    train: Rows
    held_out: Rows
    account: RowAccount
    dropped_ids: dict[str, str]
    """Rows of the ledger that could not be used: id to reason."""
    without_loss: int
    """Assistant turns of used rows that nothing is learned from."""


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module.

    Raises:
        DataError: A source is empty, lacks columns, or loses more than `max_dropped_share`.
    """
    files = Prepared(work / "output")
    files.directory.mkdir(parents=True, exist_ok=True)
    params = PrepareParams.of(spec)
    data = params.data
    parts = [part for part in DATA_PARTS if getattr(data, part)]
    events.progress(0, len(parts) + 1, "parts")

    base = fetch_base(params.base_model, spec.paths.get("base_model"), Path(spec.home))
    said = save_spoken(base, params.base_model, files.tokenizer)
    context = describe_base(params.base_model, base, files)
    if made_of := dequantized_from(base):
        events.message(f"The base model's weights are dequantized from {made_of}, in float32.")

    read = reader_of(spec)
    rules = rules_in_force(spec, said.encoder(data.trained_turns), context)
    accounts: dict[str, RowAccount] = {}
    dropped_ids: dict[str, str] = {}
    without_loss: dict[str, int] = {}
    for number, part in enumerate(parts, 1):
        rows = _collect(part, data, read, rules)
        accounts[part] = rows.account
        dropped_ids |= rows.dropped_ids
        _write_part(files, part, rows, params.max_examples)
        if rows.without_loss:
            without_loss[part] = rows.without_loss
        events.message(_sentence(part, rows))
        events.progress(number, len(parts) + 1, "parts")
    details = {part: account.model_dump() for part, account in accounts.items()}
    atomic_write_json(files.accounts, details)
    atomic_write_json(files.dropped, dropped_ids)
    events.progress(len(parts) + 1, len(parts) + 1, "parts")
    return StageResult(
        metrics={f"{part}_rows": float(account.trained) for part, account in accounts.items()},
        rows=RowAccount.total(accounts.values()),
        params={"context_length": context},
        details={"rows": details}
        | ({"responses_without_loss": without_loss} if without_loss else {}),
    )


def reader_of(spec: StageSpec) -> Read:
    """What reads the rows of the spec's sources."""
    return lambda source: read_source(source, seed=spec.seed, path=spec.paths.get(source.source))


def rules_in_force(spec: StageSpec, encoder: Encoder, context: int | None) -> Rules:
    """The rules that rows are taken by; `context` is the longest text that the model reads."""
    params = PrepareParams.of(spec)
    held_out = spec.paths.get("held_out_prompts")
    return rules_of(
        params.data,
        reader_of(spec),
        encoder=encoder,
        limits=within_context(dict.fromkeys(DATA_PARTS) | params.limits, context),
        held_out=json.loads(Path(held_out).read_text()) if held_out else [],
    )


def _collect(part: str, data: DataSection, read: Read, rules: Rules) -> Collected:
    train: Rows = []
    held_out: Rows = []
    accounts = []
    dropped_ids: dict[str, str] = {}
    without_loss = 0
    for source in getattr(data, part):
        outcomes = [outcome_of(part, row, rules) for row in read(source)]
        account = account_of(part, source, outcomes)
        problem = account.lacks_columns
        if account.lost > data.max_dropped_share * account.rows.read:
            problem = problem or account.loses(f"{account.rows.read} rows", data.max_dropped_share)
        if problem:
            raise DataError(f"data.{part}: {problem}")
        accounts.append(account)
        for outcome in outcomes:
            without_loss += outcome.responses_without_loss
            if outcome.dropped is None:
                (held_out if outcome.held_out else train).extend(outcome.columns)
            elif is_ledger(source.source) and outcome.row.fields is not None:
                dropped_ids[outcome.row.fields["id"]] = outcome.dropped
    total = RowAccount.total(account.rows for account in accounts)
    if problem := nothing_left(accounts, f"{total.read} rows"):
        raise DataError(f"data.{part}: {problem}")
    return Collected(train, held_out, total, dropped_ids, without_loss)


def _write_part(files: Prepared, part: str, rows: Collected, max_examples: int | None) -> None:
    judged = {"evaluation": files.evaluation, "general": files.general}
    train = _first(rows.train, max_examples) if part == "evaluation" else rows.train
    write_rows(judged.get(part, files.rows(part)), train)
    if PARTS[part].is_measured:
        write_rows(files.rows(part, "held_out"), rows.held_out, like=rows.train)


def _first(rows: Rows, max_examples: int | None) -> Rows:
    """The first rows of each group."""
    if max_examples is None:
        return rows
    numbers: defaultdict[str, Iterator[int]] = defaultdict(count)
    return [row for row in rows if next(numbers[row["group"]]) < max_examples]


def write_rows(path: Path, rows: Rows, like: Rows | None = None) -> None:
    """Writes rows as Parquet: equal rows, equal bytes. `like` gives the columns of no rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(like or rows).schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def _sentence(part: str, rows: Collected) -> str:
    account = rows.account
    text = f"{part}: {account.read} rows read, {account.trained} kept"
    if account.held_out:
        text += f", {account.held_out} held out"
    if account.dropped:
        text += f", dropped: {reasons(account.model_copy(update={'held_out': 0}))}"
    if rows.without_loss:
        text += f"; {rows.without_loss} assistant turns have no loss"
    return text + "."
