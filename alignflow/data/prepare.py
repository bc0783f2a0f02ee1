"""Stage `prepare`: base model and rows become token ids, each row accounted for.

    sources -> rows -> conversations -> token ids -> training, held-out, evaluation, general

A bad or too long row is dropped and counted by reason, never cut. Rows whose first user turn is an
evaluation prompt's, or held out by the ledger, are dropped from training, whatever source they
stand in.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from alignflow.data.base import describe_base, fetch_base, save_tokenizer
from alignflow.data.forms import (
    DEMONSTRATION_COLUMNS,
    BadRow,
    demonstration,
    evaluation_prompt,
    first_user_turn,
    general_text,
    last_user_turn,
)
from alignflow.data.pairs import PAIR_COLUMNS, Pair, preference_pair
from alignflow.data.reading import RawRow, read_source
from alignflow.data.template import Message, load_template
from alignflow.data.tokens import Encoder
from alignflow.errors import DataError
from alignflow.events import EventWriter
from alignflow.files import atomic_write_json
from alignflow.recipe import DataSection, DataSource
from alignflow.stage import RowAccount, StageResult, StageSpec

HELD_OUT = "held_out"
EVALUATION_PROMPT = "evaluation_prompt"
PARTS = ("sft", "preferences", "evaluation", "general")

Row = TypeVar("Row")


class Kept(NamedTuple):
    """A row that is used."""

    columns: dict[str, Any]
    held_out: bool = False


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module.

    Raises:
        DataError: A source is empty, lacks columns, or loses more than `max_dropped_share`.
    """
    output = work / "output"
    output.mkdir(parents=True, exist_ok=True)
    data = DataSection.model_validate(spec.params["data"])
    parts = [part for part in PARTS if getattr(data, part)]
    events.progress(0, len(parts) + 1, "parts")

    model = spec.params["base_model"]
    base = fetch_base(model, spec.paths.get("base_model"))
    tokenizer = save_tokenizer(base, model.get("chat_template"), output / "tokenizer")
    context = describe_base(model, base, output)
    encoder = Encoder(tokenizer, load_template(output / "tokenizer"))
    limits = _limits(spec.params["lengths"], context)

    def read(source: DataSource) -> list[RawRow]:
        return read_source(source, seed=spec.seed, path=spec.paths.get(source.source))

    judged = _evaluation_prompts(data.evaluation, read) | _held_out(spec)
    forms = {
        "sft": _sft_form(encoder, judged, limits["sft"]),
        "preferences": _pair_form(encoder, judged, limits["preferences"], data.held_out_share),
        "evaluation": _evaluation_form(encoder),
        "general": lambda fields: Kept({"text": general_text(fields)}),
    }
    accounts = {}
    for number, part in enumerate(parts, 1):
        rows, accounts[part] = _collect(
            part, getattr(data, part), read, forms[part], data.max_dropped_share
        )
        _write_part(output, part, rows, spec.params.get("max_examples"))
        events.message(_sentence(part, accounts[part]))
        events.progress(number, len(parts) + 1, "parts")
    atomic_write_json(
        output / "rows.json", {part: account.model_dump() for part, account in accounts.items()}
    )
    events.progress(len(parts) + 1, len(parts) + 1, "parts")
    return StageResult(
        metrics={f"{part}_rows": float(account.trained) for part, account in accounts.items()},
        rows=_total(accounts),
        params={"context_length": context},
        details={"rows": {part: account.model_dump() for part, account in accounts.items()}},
    )


def _limits(lengths: dict[str, int | None], context: int | None) -> dict[str, int | None]:
    """Longest row of each part, in tokens: the longest a stage takes that the model can see."""
    preferences = [n for n in (lengths.get("reward"), lengths.get("dpo")) if n is not None]
    wanted = {"sft": lengths.get("sft"), "preferences": max(preferences, default=None)}
    return {
        part: min((n for n in (limit, context) if n is not None), default=None)
        for part, limit in wanted.items()
    }


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


def _held_out(spec: StageSpec) -> set[str]:
    """sha256 of the first user turns that the ledger holds out."""
    path = spec.paths.get("held_out_prompts")
    return set(json.loads(Path(path).read_text())) if path else set()


def _is_judged(messages: list[Message], judged: set[str]) -> bool:
    turn = first_user_turn(messages)
    return turn in judged or hashlib.sha256(turn.encode()).hexdigest() in judged


def _sft_form(
    encoder: Encoder, judged: set[str], limit: int | None
) -> Callable[[dict[str, Any]], Kept]:
    def form(fields: dict[str, Any]) -> Kept:
        row = demonstration(fields)
        if row.messages is not None and _is_judged(row.messages, judged):
            raise BadRow(EVALUATION_PROMPT)
        encoded = encoder.demonstration(row)
        _check_length(len(encoded.input_ids), limit)
        return Kept(encoded._asdict())

    return form


def _pair_form(
    encoder: Encoder, judged: set[str], limit: int | None, held_out_share: float
) -> Callable[[dict[str, Any]], Kept]:
    def form(fields: dict[str, Any]) -> Kept:
        pair = preference_pair(fields)
        if _is_judged(pair.prompt, judged):
            raise BadRow(EVALUATION_PROMPT)
        encoded = encoder.pair(*pair)
        longest = max(len(encoded.chosen_ids), len(encoded.rejected_ids))
        _check_length(len(encoded.prompt_ids) + longest, limit)
        return Kept(encoded._asdict(), _is_held_out(fields, pair, held_out_share))

    return form


def _evaluation_form(encoder: Encoder) -> Callable[[dict[str, Any]], Kept]:
    def form(fields: dict[str, Any]) -> Kept:
        row = evaluation_prompt(fields)
        return Kept(
            {
                **encoder.prompt(row.messages)._asdict(),
                "question": last_user_turn(row.messages),
                "target": row.target,
                "group": row.group,
            }
        )

    return form


def _is_held_out(fields: dict[str, Any], pair: Pair, share: float) -> bool:
    """By the row's own `split`, else by its prompt, so that a prompt is never on both sides."""
    if fields.get("split") is not None:
        return fields["split"] == HELD_OUT
    text = "\n".join(f"{entry['role']}: {entry['content']}" for entry in pair.prompt)
    digest = hashlib.sha256(text.strip().casefold().encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _check_length(tokens: int, limit: int | None) -> None:
    if limit is not None and tokens > limit:
        raise BadRow("too_long", f"{tokens} tokens, at most {limit}")


def _collect(
    part: str,
    sources: list[DataSource],
    read: Callable[[DataSource], list[RawRow]],
    form: Callable[[dict[str, Any]], Kept],
    max_dropped_share: float,
) -> tuple[list[Kept], RowAccount]:
    """Rows of all sources of a part, formed, and their account."""
    rows: list[Kept] = []
    count = 0
    dropped: Counter[str] = Counter()
    for source in sources:
        raw = read(source)
        kept, reasons, example = _formed(raw, form)
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
    raw: list[RawRow], form: Callable[[dict[str, Any]], Kept]
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
    return kept, reasons, example


COLUMNS = {
    "sft": DEMONSTRATION_COLUMNS,
    "preferences": PAIR_COLUMNS,
    "evaluation": "prompt and target",
    "general": "text",
}


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
    lost = reasons.total() - reasons[EVALUATION_PROMPT]
    if lost > max_dropped_share * count:
        firsts = "; ".join(text for reason, text in example.items() if reason != EVALUATION_PROMPT)
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
    if part == "sft":
        write_rows(output / "sft" / "train.parquet", trained)
    elif part == "preferences":
        write_rows(output / "preferences" / "train.parquet", trained)
        held_out = [row.columns for row in rows if row.held_out]
        write_rows(output / "preferences" / "held_out.parquet", held_out, like=trained)
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


def _total(accounts: dict[str, RowAccount]) -> RowAccount:
    dropped: Counter[str] = Counter()
    for account in accounts.values():
        dropped += Counter(account.dropped)
    return RowAccount(
        read=sum(account.read for account in accounts.values()),
        trained=sum(account.trained for account in accounts.values()),
        held_out=sum(account.held_out for account in accounts.values()),
        dropped=dict(dropped),
    )


def _sentence(part: str, account: RowAccount) -> str:
    text = f"{part}: {account.read} rows read, {account.trained} kept"
    if account.held_out:
        text += f", {account.held_out} held out"
    if account.dropped:
        text += f", dropped: {_reasons(Counter(account.dropped))}"
    return text + "."
