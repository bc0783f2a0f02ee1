"""Stage `prepare`: base model and rows become token ids, each row accounted for.

    sources -> rows -> conversations -> token ids -> training, held-out, evaluation, general

A bad or too long row is dropped and counted by reason, never cut. Rows in which a user turn is an
evaluation prompt's first one, or held out by the ledger, are dropped from training, whatever source
they stand in, and so are texts that hold one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.data.base import describe_base, fetch_base, save_spoken
from alignflow.data.chunks import (
    Chunk,
    Done,
    Maker,
    Notes,
    chunks_of,
    columns_of,
    dropped_ids_of,
    made,
)
from alignflow.data.gguf_base import dequantized_from
from alignflow.data.lengths import within_context
from alignflow.data.parts import PARTS
from alignflow.data.reading import read_source
from alignflow.data.rows import (
    Read,
    Rules,
    SourceAccount,
    account_of,
    nothing_left,
    outcome_of,
    reasons,
    rules_of,
)
from alignflow.data.stored import schema_of
from alignflow.data.tokens import Encoder
from alignflow.errors import DataError
from alignflow.files import atomic_write_json
from alignflow.recipe import DATA_PARTS, DataSection
from alignflow.stages import (
    EventWriter,
    Prepared,
    PrepareParams,
    RowAccount,
    StageResult,
    StageSpec,
    processors,
)

TOLD_CHUNKS = 50
"""Stretches of rows after which a part says how far it is."""
Rows = list[dict[str, Any]]
Say = Callable[[str], None]
Making = Callable[[Iterator[Chunk]], Iterator[tuple[Chunk, Done]]]


class Made(NamedTuple):
    """What became of a part."""

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
    if origin := dequantized_from(base):
        events.message(f"The base model's weights are dequantized from {origin}, in float32.")

    read = reader_of(spec)
    rules = rules_in_force(spec, said.encoder(data.trained_turns), context)
    maker, notes = Maker(rules, files), Notes(work, files.directory)
    making = partial(made, maker=maker, notes=notes, workers=spec.compute.threads or processors())
    accounts: dict[str, RowAccount] = {}
    dropped_ids: dict[str, str] = {}
    without_loss: dict[str, int] = {}
    for number, part in enumerate(parts, 1):
        if PARTS[part].is_judging:
            made_of_it, rows = _judged(part, data, read, rules)
            most = params.max_examples if part == "evaluation" else None
            write_rows(getattr(files, part), _first(rows, most), part)
        else:
            made_of_it = _made(part, data, read, making, events.message)
        accounts[part] = made_of_it.account
        dropped_ids |= made_of_it.dropped_ids
        if made_of_it.without_loss:
            without_loss[part] = made_of_it.without_loss
        events.message(_sentence(part, made_of_it))
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


def _made(part: str, data: DataSection, read: Read, making: Making, say: Say) -> Made:
    """Makes the shards of a part that is trained on."""
    total = Total(part, data.max_dropped_share)
    number, dropped_ids, without_loss = 0, dict[str, str](), 0
    for source in getattr(data, part):
        total.begin(source.source)
        for chunk, done in making(chunks_of(part, number, source, read(source))):
            number = chunk.number + 1
            total.add(done.account(source.source))
            dropped_ids |= done.dropped_ids
            without_loss += done.without_loss
            if number % TOLD_CHUNKS == 0:
                say(f"{part}: {total.rows.read:,} rows read so far.")
        total.end()
    return Made(total.checked(), dropped_ids, without_loss)


def _judged(part: str, data: DataSection, read: Read, rules: Rules) -> tuple[Made, Rows]:
    """The rows of a part that models are measured with."""
    total, rows = Total(part, data.max_dropped_share), Rows()
    dropped_ids: dict[str, str] = {}
    for source in getattr(data, part):
        total.begin(source.source)
        outcomes = [outcome_of(part, row, rules) for row in read(source)]
        total.add(account_of(part, source, outcomes))
        total.end()
        dropped_ids |= dropped_ids_of(source, outcomes)
        rows += columns_of((o for o in outcomes if o.dropped is None), held_out=False)
    return Made(total.checked(), dropped_ids, 0), rows


class Total:
    """The account of a part, source by source, and whether so many rows may be lost."""

    def __init__(self, part: str, max_dropped_share: float) -> None:
        self._part, self._allowed = part, max_dropped_share
        self._accounts: list[SourceAccount] = []

    def begin(self, source: str) -> None:
        """A source begins."""
        self._accounts.append(SourceAccount(self._part, source, RowAccount(), {}))

    def add(self, account: SourceAccount) -> None:
        """Further rows of the source that was begun."""
        self._accounts[-1] = self._accounts[-1].and_then(account)

    def end(self) -> None:
        """A source has no more rows.

        Raises:
            DataError: It lacks columns, or loses more rows than it may.
        """
        account = self._accounts[-1]
        problem = account.lacks_columns
        if account.lost > self._allowed * account.rows.read:
            problem = problem or account.loses(f"{account.rows.read} rows", self._allowed)
        if problem:
            raise DataError(f"data.{self._part}: {problem}")

    @property
    def rows(self) -> RowAccount:
        """Of all sources so far."""
        return RowAccount.total(account.rows for account in self._accounts)

    def checked(self) -> RowAccount:
        """Of all sources.

        Raises:
            DataError: Nothing is left.
        """
        total = self.rows
        if problem := nothing_left(self._accounts, f"{total.read} rows"):
            raise DataError(f"data.{self._part}: {problem}")
        return total


def _first(rows: Rows, max_examples: int | None) -> Rows:
    """The first rows of each group."""
    if max_examples is None:
        return rows
    numbers: defaultdict[str, Iterator[int]] = defaultdict(count)
    return [row for row in rows if next(numbers[row["group"]]) < max_examples]


def write_rows(path: Path, rows: Rows, part: str) -> None:
    """Writes rows of a part that is not trained on as Parquet: equal rows, equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows, schema=schema_of(PARTS[part].columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def _sentence(part: str, made: Made) -> str:
    account = made.account
    text = f"{part}: {account.read} rows read, {account.trained} kept"
    if account.held_out:
        text += f", {account.held_out} held out"
    if account.dropped:
        text += f", dropped: {reasons(account.model_copy(update={'held_out': 0}))}"
    if made.without_loss:
        text += f"; {made.without_loss} assistant turns have no loss"
    return text + "."
