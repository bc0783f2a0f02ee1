"""Stage `prepare`: base model and rows become token ids, each row accounted for.

    sources -> rows -> conversations -> token ids -> training, held-out, evaluation, general

A bad or too long row is dropped and counted by reason, never cut. Rows whose first user turn is an
evaluation prompt's, or held out by the ledger, are dropped from training, whatever source they
stand in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from alignflow.data.base import describe_base, fetch_base, save_tokenizer
from alignflow.data.forms import (
    BadRow,
    evaluation_prompt,
    first_user_turn,
    general_text,
)
from alignflow.data.lengths import within_context
from alignflow.data.reading import RawRow, read_source
from alignflow.data.row_forms import (
    COLUMNS,
    EVALUATION_PROMPT,
    GENERAL_TEXT,
    HELD_OUT,
    Form,
    Kept,
    document_form,
    evaluation_form,
    pair_form,
    prompt_form,
    rating_form,
    sft_form,
)
from alignflow.data.template import load_template
from alignflow.data.tokens import Encoder
from alignflow.errors import DataError
from alignflow.files import atomic_write_json
from alignflow.recipe import DATA_PARTS, DataSection, DataSource
from alignflow.recipe.names import is_ledger
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import RowAccount, StageResult, StageSpec

DROPPED_FILE = "dropped.json"
"""Rows of the ledger that could not be used: id to reason."""

Row = TypeVar("Row")


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module.

    Raises:
        DataError: A source is empty, lacks columns, or loses more than `max_dropped_share`.
    """
    output = work / "output"
    output.mkdir(parents=True, exist_ok=True)
    data = DataSection.model_validate(spec.params["data"])
    parts = [part for part in DATA_PARTS if getattr(data, part)]
    events.progress(0, len(parts) + 1, "parts")

    model = spec.params["base_model"]
    base = fetch_base(model, spec.paths.get("base_model"))
    tokenizer = save_tokenizer(base, model.get("chat_template"), output / "tokenizer")
    context = describe_base(model, base, output)
    encoder = Encoder(tokenizer, load_template(output / "tokenizer"))
    limits = within_context(dict.fromkeys(DATA_PARTS) | spec.params["limits"], context)

    def read(source: DataSource) -> list[RawRow]:
        return read_source(source, seed=spec.seed, path=spec.paths.get(source.source))

    judged = _evaluation_prompts(data.evaluation, read) | _held_out(spec)
    measured = _general_texts(data.general, read)
    forms = {
        "pretrain": document_form(encoder, measured, data.held_out_share),
        "replay": document_form(encoder, measured, held_out_share=0.0),
        "sft": sft_form(encoder, judged, limits["sft"]),
        "preferences": pair_form(encoder, judged, limits["preferences"], data.held_out_share),
        "ratings": rating_form(encoder, judged, limits["ratings"], data.held_out_share),
        "prompts": prompt_form(encoder, judged, limits["prompts"], data.held_out_share),
        "evaluation": evaluation_form(encoder),
        "general": lambda fields: Kept({"text": general_text(fields)}),
    }
    accounts = {}
    dropped_ids: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        rows, accounts[part] = _collect(
            part, getattr(data, part), read, forms[part], data.max_dropped_share, dropped_ids
        )
        _write_part(output, part, rows, spec.params.get("max_examples"))
        events.message(_sentence(part, accounts[part]))
        events.progress(number, len(parts) + 1, "parts")
    atomic_write_json(
        output / "rows.json", {part: account.model_dump() for part, account in accounts.items()}
    )
    atomic_write_json(output / DROPPED_FILE, dropped_ids)
    events.progress(len(parts) + 1, len(parts) + 1, "parts")
    return StageResult(
        metrics={f"{part}_rows": float(account.trained) for part, account in accounts.items()},
        rows=RowAccount.total(accounts.values()),
        params={"context_length": context},
        details={"rows": {part: account.model_dump() for part, account in accounts.items()}},
    )


def _evaluation_prompts(
    sources: list[DataSource], read: Callable[[DataSource], list[RawRow]]
) -> set[str]:
    """First user turns that must not be trained on. Bad rows are counted elsewhere."""
    found = set()
    for source in sources:
        for row in read(source):
            try:
                found.add(first_user_turn(evaluation_prompt(row.fields or {}).messages))
            except BadRow:
                continue
    return found


def _general_texts(
    sources: list[DataSource], read: Callable[[DataSource], list[RawRow]]
) -> set[str]:
    """Texts that forgetting is measured on. Bad rows are counted elsewhere."""
    rows = (row.fields or {} for source in sources for row in read(source))
    return {fields["text"] for fields in rows if isinstance(fields.get("text"), str)}


def _held_out(spec: StageSpec) -> set[str]:
    """sha256 of the first user turns that the ledger holds out."""
    path = spec.paths.get("held_out_prompts")
    return set(json.loads(Path(path).read_text())) if path else set()


def _collect(
    part: str,
    sources: list[DataSource],
    read: Callable[[DataSource], list[RawRow]],
    form: Form,
    max_dropped_share: float,
    dropped_ids: dict[str, str],
) -> tuple[list[Kept], RowAccount]:
    """Rows of all sources of a part, formed, and their account; adds to `dropped_ids`."""
    rows: list[Kept] = []
    count = 0
    dropped: Counter[str] = Counter()
    for source in sources:
        raw = read(source)
        kept, reasons, example = _formed(raw, form, dropped_ids if is_ledger(source.source) else {})
        _check_loss(part, source.source, len(raw), reasons, example, max_dropped_share)
        rows += kept
        count += len(raw)
        dropped += reasons
    held_out = sum(row.held_out for row in rows)
    if len(rows) - held_out == 0:
        raise DataError(
            f"data.{part}: nothing is left of {count} rows ({_reasons(dropped, held_out)}). "
            "Give more rows, or look at the reasons."
        )
    account = RowAccount(
        read=count, trained=len(rows) - held_out, held_out=held_out, dropped=dict(dropped)
    )
    return rows, account


def _formed(
    raw: list[RawRow], form: Form, dropped_ids: dict[str, str]
) -> tuple[list[Kept], Counter[str], dict[str, str]]:
    kept: list[Kept] = []
    reasons: Counter[str] = Counter()
    example: dict[str, str] = {}
    for row in raw:
        try:
            if row.fields is None:
                raise BadRow(row.problem or "unreadable")
            kept.append(form(row.fields))
        except BadRow as bad:
            reasons[bad.reason] += 1
            example.setdefault(bad.reason, f"{row.place}: {bad}")
            if row.fields is not None and "id" in row.fields:
                dropped_ids[row.fields["id"]] = bad.reason
    return kept, reasons, example


def _check_loss(
    part: str,
    source: str,
    count: int,
    reasons: Counter[str],
    example: dict[str, str],
    max_dropped_share: float,
) -> None:
    if reasons["missing_columns"] == count:
        raise DataError(
            f"data.{part}: {source} lacks the columns {COLUMNS[part]} "
            f"({example['missing_columns']}). Map its names in `columns`."
        )
    lost = reasons.total() - reasons[EVALUATION_PROMPT] - reasons[GENERAL_TEXT]
    if lost > max_dropped_share * count:
        firsts = "; ".join(
            text
            for reason, text in example.items()
            if reason not in (EVALUATION_PROMPT, GENERAL_TEXT)
        )
        raise DataError(
            f"data.{part}: {source} loses {lost} of {count} rows ({_reasons(reasons)}), more than "
            f"data.max_dropped_share {max_dropped_share}. First of each kind: {firsts}. "
            "Repair the rows, raise max_length, or raise the share."
        )


def _reasons(reasons: Counter[str], held_out: int = 0) -> str:
    parts = [f"{reason} {number}" for reason, number in reasons.most_common()]
    return ", ".join(parts + ([f"{HELD_OUT} {held_out}"] if held_out else [])) or "no rows"


def _write_part(output: Path, part: str, rows: list[Kept], max_examples: int | None) -> None:
    trained = [row.columns for row in rows if not row.held_out]
    if part in ("sft", "replay"):
        write_rows(output / part / "train.parquet", trained)
    elif part in ("pretrain", "preferences", "ratings", "prompts"):
        write_rows(output / part / "train.parquet", trained)
        held_out = [row.columns for row in rows if row.held_out]
        write_rows(output / part / "held_out.parquet", held_out, like=trained)
    elif part == "evaluation":
        write_rows(output / "evaluation" / "prompts.parquet", _first(trained, max_examples))
    else:
        write_rows(output / "general" / "rows.parquet", trained)


def _first(rows: list[dict[str, Any]], max_examples: int | None) -> list[dict[str, Any]]:
    """The first rows of each group."""
    if max_examples is None:
        return rows
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["group"]] += 1
        if seen[row["group"]] <= max_examples:
            kept.append(row)
    return kept


def write_rows(
    path: Path, rows: list[dict[str, Any]], like: list[dict[str, Any]] | None = None
) -> None:
    """Writes rows as Parquet: equal rows, equal bytes. `like` gives the columns of no rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(like or rows).schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def _sentence(part: str, account: RowAccount) -> str:
    text = f"{part}: {account.read} rows read, {account.trained} kept"
    if account.held_out:
        text += f", {account.held_out} held out"
    if account.dropped:
        text += f", dropped: {_reasons(Counter(account.dropped))}"
    return text + "."
