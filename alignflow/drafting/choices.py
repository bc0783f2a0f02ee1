"""The choices of a drafted recipe, each with its reason: by the field's rules and by what was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.checking import Needs, gib
from alignflow.data import flow
from alignflow.drafting.looking import Seen
from alignflow.drafting.targets import METRICS, Kind
from alignflow.errors import DataError
from alignflow.recipe import TRAINING_STAGES, DataSource, is_builtin, is_hub_id, matching_files
from alignflow.stages import largest_divisor

FEWEST_UPDATES = 30
"""With fewer a run has hardly left its warmup."""
FEW_ROWS, MANY_ROWS = 1_000, 10_000
FEWEST_PROMPTS, MOST_PROMPTS = 20, 300
EVALUATION_SHARE = 0.1
MOSTLY_DIFFERENT = 0.5
"""A sample with a smaller share of different prompts has about all that there are."""
UNMEASURED_LENGTH = 2048
MEMORY_SHARE = 0.9
"""Of what is free, that an estimate may take."""
RANKS = {"style or format": 16, "a field's knowledge": 32, "reasoning": 64}
LONGEST_ANSWER = 1024
EXECUTED = "execution_accuracy"


class Choice(NamedTuple):
    """A value and why it was chosen."""

    value: Any
    why: str


Choices = dict[str, Choice]


def source_choice(one: Seen) -> Choice:
    """A source as the recipe names it, and what it was taken for."""
    return Choice(
        _shortest(one.source), f"{one.rows:,} rows" + (f", form {one.form}" if one.form else "")
    )


def _shortest(source: DataSource) -> Any:
    """A source as a recipe may say it: by its name alone where there is no more to say."""
    given = source.model_dump(mode="json", exclude_defaults=True)
    return given["source"] if [*given] == ["source"] else given


def evaluation_choice(trained: Sequence[Seen]) -> Choice:
    """What is asked where no source is for that: rows that say so, else a share of the demonstrations.

    Their prompts are kept from training by `prepare`, in whatever source they stand.
    """
    one = next((seen for seen in trained if seen.kind is not None), None)
    if one is None:
        return Choice([], "no prompts with targets here: name some, and answers are judged")
    if one.judging:
        why = "rows whose `split` is test or the like; the others are trained on"
        return Choice(_shortest(one.source), why)
    given = one.source.model_dump(mode="json", exclude_defaults=True)
    if split := _split_beside(one.source):
        return Choice({**given, "split": split}, f"the folder's files of {split}")
    if one.prompts < FEWEST_PROMPTS:
        return Choice(
            [], f"{one.prompts} different prompts are too few to hold some out: name others"
        )
    asked = _held_out_rows(one)
    why = f"{asked} of these rows, drawn by the seed; their prompts are not trained on"
    return Choice({**given, "weight": float(f"{asked / one.rows:.2g}")}, why)


def _held_out_rows(one: Seen) -> int:
    """Rows to ask, so that a tenth of the different prompts, of few a fifth, is not trained on."""
    in_sample = one.prompts / one.sampled
    repeated = in_sample < MOSTLY_DIFFERENT or one.sampled == one.rows
    prompts = one.prompts if repeated else in_sample * one.rows
    share = max(EVALUATION_SHARE * prompts, min(FEWEST_PROMPTS, 2 * EVALUATION_SHARE * prompts))
    return max(1, round(min(share, MOST_PROMPTS)))


def _split_beside(source: DataSource) -> str | None:
    """A split that a folder has beside the one that is trained on."""
    if is_builtin(source.source) or is_hub_id(source.source):
        return None
    if not Path(source.source).expanduser().is_dir():
        return None
    train = matching_files(source.source, "train")
    for split in ("test", "validation"):
        try:
            files = matching_files(source.source, split)
        except DataError:
            continue
        if not {*files} & {*train}:
            return split
    return None


def training_section(
    stage: str, seen: Sequence[Seen], *, full: bool, small: bool, context: int | None
) -> Choices:
    """Rate, epochs, batch and longest row of a stage that trains on these sources."""
    rows = sum(round(one.rows * (1 - one.lost)) for one in seen)
    epochs = 1 if stage == "pretrain" or rows >= MANY_ROWS else 2 if rows >= FEW_ROWS else 3
    batch = next((size for size in (16, 8) if math.ceil(rows / size) * epochs >= FEWEST_UPDATES), 4)
    section: Choices = {
        "learning_rate": rate_choice(stage, full=full, small=small),
        "num_train_epochs": Choice(epochs, f"passes over about {rows:,} rows"),
    }
    if batch != 16:
        section["batch_size"] = Choice(batch, f"small, for {rows:,} rows are few updates")
    if stage == "pretrain":
        section["replay_share"] = Choice(
            0, "0.25 with general text in data.replay: less is forgotten"
        )
    length = length_choice(stage, seen, context)
    return section | ({"max_length": length} if length else {})


def rate_choice(stage: str, *, full: bool, small: bool) -> Choice:
    """The stage's rate for adapters; full tuning takes a tenth, a very small model ten times as much."""
    usual: float = TRAINING_STAGES[stage].section.model_fields["learning_rate"].default
    rate, why = usual, "usual for adapters"
    if full:
        rate, why = rate / 10, "full tuning takes a tenth of an adapter's"
    if small:
        rate, why = rate * 10, f"{why}; below 100M parameters ten times as much"
    return Choice(float(f"{rate:.1g}"), why)


def length_choice(stage: str, seen: Sequence[Seen], context: int | None) -> Choice | None:
    """The longest row, or what 99 % have at most where a few are far longer; in multiples of 32."""
    if stage == "pretrain":
        usual = TRAINING_STAGES[stage].section.model_fields["max_length"].default
        too_long = context is not None and context < usual
        return Choice(context, "tokens of a packed row: the model's context") if too_long else None
    measured = [one for one in seen if one.lengths]
    limit = context or 2**31
    if not measured:
        return Choice(min(UNMEASURED_LENGTH, limit), "tokens; not measured, the model is not here")
    longest = max(one.length(1.0) or 0 for one in measured)
    most = max(one.length(0.99) or 0 for one in measured)
    chosen = most if longest > 2 * most else longest
    value = min(math.ceil(chosen / 32) * 32, limit)
    median = max(one.length(0.5) or 0 for one in measured)
    why = f"tokens; rows have {median} in the median, {longest} at most"
    return Choice(value, why + ("; longer ones are dropped" if value < longest else ""))


def evaluation_section(kind: Kind, longest: int, databases: Sequence[str], own: bool) -> Choices:
    """Metric and longest answer. `own` is whether all rows ship with the package."""
    metrics: list[Any]
    metrics, why = METRICS[kind]
    if kind == "sql" and (databases or own):
        named: Any = databases[0] if len(databases) == 1 else list(databases)
        metrics = [{EXECUTED: {"database": named}}] if databases else [EXECUTED]
        why = "answers are SQL: both queries are run, and must return the same"
    tokens = min(max(32, math.ceil(longest * 1.25 / 16) * 16), LONGEST_ANSWER)
    return {
        "metrics": Choice(metrics, why),
        "max_new_tokens": Choice(tokens, f"the longest answer seen has {longest}"),
    }


def micro_batch_choice(needs: Needs, batches: dict[str, int]) -> Choice | None:
    """Rows at once where the first attempt of a stage would not fit; None where all do."""
    have = needs.memory_available_bytes
    if have is None:
        return None
    room = int(have * MEMORY_SHARE)
    tight = [stage for stage in needs.stages if stage.first_bytes > room]
    if not tight:
        return None
    rows = min(
        max(1, (room - stage.least_bytes) // max(stage.one_row_bytes, 1) + 1) for stage in tight
    )
    fitting = min(largest_divisor(batches[stage.stage], rows) for stage in tight)
    return Choice(fitting, f"rows at once, for {gib(have)} are free here")


def fits(needs: Needs) -> bool:
    """Whether every stage has room for one row."""
    have = needs.memory_available_bytes
    return have is None or all(stage.least_bytes <= have * MEMORY_SHARE for stage in needs.stages)


def as_text(value: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(value, float) and 0 < abs(value) < 1e-2:
        mantissa, _, exponent = f"{value:e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return flow(value)
