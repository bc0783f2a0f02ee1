"""What becomes of a row, for `prepare` and for `check`: kept, held out, or dropped with its reason.

    source -> raw row -> form of the part -> not excluded -> token ids -> not too long -> account

Nothing that a row holds ends more than that row. The ledger reads files and forms with the same
functions (`reading.json_object`, `forms`, `turns.turns_of`, `feedback`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from alignflow.data.asked import Asked
from alignflow.data.columns import columns_line
from alignflow.data.file_rows import RawRow
from alignflow.data.groups import falls_into
from alignflow.data.parts import PARTS, TRAINING_SPLIT, Formed, formed
from alignflow.data.rejected import UNREADABLE, BadRow, one_row
from alignflow.data.tokens import Encoder
from alignflow.data.turns import first_user_turn, same_question
from alignflow.recipe import DataSection, DataSource
from alignflow.stages import RowAccount

HELD_OUT = "held_out"
EVALUATION_PROMPT = "evaluation_prompt"
GENERAL_TEXT = "general_text"
TOO_LONG = "too_long"
MISSING = "missing_columns"
EXCLUDED = (EVALUATION_PROMPT, GENERAL_TEXT, TRAINING_SPLIT)
"""Reasons that are no fault of a row."""

Read = Callable[[DataSource], Iterable[RawRow]]


class Rules(NamedTuple):
    """What decides over rows beside their own form."""

    encoder: Encoder | None
    """None where there is no tokenizer: then lengths are not known."""
    limits: Mapping[str, int | None]
    """Longest row of a part, in tokens."""
    held_out_share: float
    judged: Asked
    """What must not be trained on."""
    measured: frozenset[str]
    """Texts that forgetting is measured on."""


class Outcome(NamedTuple):
    """What became of a row."""

    row: RawRow
    columns: list[dict[str, Any]]
    """What is written of it; nothing where it was dropped, or there is no tokenizer."""
    tokens: int | None
    """None where it was dropped before, or there is no tokenizer."""
    held_out: bool = False
    dropped: str | None = None
    """Reason; None where it is used."""
    message: str = ""
    responses: int = 0
    """Assistant turns of a demonstration that is used."""
    form: str | None = None
    """What it was recognised as."""
    unread: tuple[str, ...] = ()
    """Columns of a used row that hold something and were not read."""
    question: str = ""
    """Of a used row: its first user turn, else its text, as `same_question` has it."""

    @property
    def responses_without_loss(self) -> int:
        """Assistant turns that nothing is learned from."""
        return self.responses - sum(columns.get("responses", 0) for columns in self.columns)


def rules_of(
    data: DataSection,
    read: Read,
    *,
    encoder: Encoder | None,
    limits: Mapping[str, int | None],
    held_out: Collection[str],
) -> Rules:
    """The rules that a recipe's data make, once the sources that judge and measure were read.

    `held_out` are sha256 of the first user turns that the ledger holds out; for the others see Rules.
    """
    judged = [first_user_turn(row.prompt or []) for row in _forms("evaluation", data, read)]
    measured = {row.document or "" for row in _forms("general", data, read)}
    share = data.held_out_share
    return Rules(encoder, limits, share, Asked.of(judged, held_out), frozenset(measured))


def _forms(part: str, data: DataSection, read: Read) -> Iterable[Formed]:
    """Rows of a part in its form. Bad ones are counted where the part itself is read."""
    for source in getattr(data, part):
        for row in read(source):
            try:
                yield _formed(part, row)
            except BadRow:
                continue


def _formed(part: str, row: RawRow) -> Formed:
    if row.fields is None:
        raise BadRow(row.problem or UNREADABLE, row.message)
    with one_row():
        return formed(part, row.fields, row.form)


def outcome_of(part: str, row: RawRow, rules: Rules) -> Outcome:
    """What becomes of a row; it never raises for what the row holds.

    Raises:
        DataError: The data are conversations, and there is no chat template.
    """
    columns: list[dict[str, Any]] = []
    tokens = None
    try:
        said = _formed(part, row)
        _check_allowed(part, said, rules)
        if rules.encoder is not None:
            with one_row():
                columns = said.columns(rules.encoder)
                for ids in (ids for row in columns for _, ids in _ids_in(row)):
                    rules.encoder.check_embedded(ids)
            tokens = max((n for n in map(length_of, columns) if n is not None), default=None)
            limit = rules.limits.get(part) if PARTS[part].is_limited else None
            if limit is not None and tokens is not None and tokens > limit:
                raise BadRow(TOO_LONG, f"{tokens} tokens, at most {limit}")
    except BadRow as bad:
        return Outcome(row, [], tokens, dropped=bad.reason, message=str(bad))
    return Outcome(
        row,
        columns,
        tokens,
        _is_held_out(part, said, rules.held_out_share),
        responses=said.responses,
        form=said.form,
        unread=said.unread,
        question=first_user_turn(said.prompt or [])
        or same_question(said.text or said.document or ""),
    )


def _check_allowed(part: str, formed: Formed, rules: Rules) -> None:
    if part in ("evaluation", "general"):
        return
    if formed.document is not None and formed.document in rules.measured:
        raise BadRow(GENERAL_TEXT)
    if rules.judged.among(formed.prompt or []) or rules.judged.within(formed.text or ""):
        raise BadRow(EVALUATION_PROMPT)


def _is_held_out(part: str, said: Formed, share: float) -> bool:
    """By the row's own `split`, else by its text."""
    if said.for_training is not None:
        return not said.for_training and not PARTS[part].is_judging
    if not PARTS[part].is_measured:
        return False
    return falls_into(share, said.said.strip().casefold().encode())


def length_of(columns: Mapping[str, Any]) -> int | None:
    """Tokens of a row: of its prompt and the longest that continues it; None where it has no ids."""
    ids = {name: len(value) for name, value in _ids_in(columns)}
    if not ids:
        return None
    return ids.pop("prompt_ids", 0) + max(ids.values(), default=0)


def _ids_in(columns: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    return [(name, value) for name, value in columns.items() if name.endswith("_ids")]


class SourceAccount(NamedTuple):
    """Where the rows of one source went."""

    part: str
    source: str
    rows: RowAccount
    first: dict[str, str]
    """Reason to the first row dropped for it, and why."""
    remedy: str = ""
    """What to write where no row has the columns of the part."""

    @property
    def lost(self) -> int:
        """Dropped rows that `data.max_dropped_share` is about."""
        return sum(count for reason, count in self.rows.dropped.items() if reason not in EXCLUDED)

    @property
    def lacks_columns(self) -> str | None:
        """What is wrong where no row has the columns of the part."""
        if self.rows.dropped.get(MISSING, 0) < self.rows.read:
            return None
        return (
            f"{self.source} lacks the columns {PARTS[self.part].wants} ({self.first[MISSING]}). "
            f"{self.remedy}."
        )

    def loses(self, where: str, allowed: float) -> str:
        """Says that too many rows are lost, of `where`."""
        firsts = [text for reason, text in self.first.items() if reason not in EXCLUDED]
        return (
            f"{self.source} loses {self.lost} of {where} ({reasons(self.rows)}); "
            f"data.max_dropped_share is {allowed:g}. First of each kind: {'; '.join(firsts)}. "
            "Repair the rows, raise max_length, or raise the share."
        )

    def and_then(self, later: SourceAccount) -> SourceAccount:
        """The account of these rows and of later ones of the same source."""
        new = {reason: text for reason, text in later.first.items() if reason not in self.first}
        return self._replace(
            rows=RowAccount.total([self.rows, later.rows]),
            first=self.first | new,
            remedy=self.remedy or later.remedy,
        )


def account_of(part: str, source: DataSource, outcomes: Iterable[Outcome]) -> SourceAccount:
    """The account of rows of a source: read = trained + held_out + dropped."""
    dropped: Counter[str] = Counter()
    first: dict[str, str] = {}
    remedy = ""
    read = held_out = 0
    for outcome in outcomes:
        read += 1
        held_out += outcome.held_out
        if outcome.dropped is not None:
            dropped[outcome.dropped] += 1
            if outcome.dropped == MISSING and MISSING not in first:
                remedy = columns_line(outcome.row.fields or {}, part, source)
            first.setdefault(outcome.dropped, f"{outcome.row.place}: {outcome.message}")
    trained = read - held_out - dropped.total()
    account = RowAccount(read=read, trained=trained, held_out=held_out, dropped=dict(dropped))
    return SourceAccount(part, source.source, account, first, remedy)


def nothing_left(accounts: Sequence[SourceAccount], where: str) -> str | None:
    """What is wrong where no row of all sources of a part is trained on."""
    total = RowAccount.total(account.rows for account in accounts)
    if total.trained:
        return None
    firsts = "; ".join(text for account in accounts for text in account.first.values())
    first = f" First of each kind: {firsts}." if firsts else ""
    return (
        f"nothing is left of {where} ({reasons(total)}).{first} Give more rows, or look at the "
        "reasons."
    )


def reasons(account: RowAccount) -> str:
    """Why rows are not trained on, and how many, most first."""
    parts = [f"{reason} {count}" for reason, count in Counter(account.dropped).most_common()]
    held_out = [f"{HELD_OUT} {account.held_out}"] if account.held_out else []
    return ", ".join(parts + held_out) or "no rows"
