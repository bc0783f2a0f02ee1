"""Prompts that a policy answers while it trains: those of PPO, RLOO and GRPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from alignflow.data import StoredRows
from alignflow.errors import DataError
from alignflow.stages import RowAccount
from alignflow.training.engine import Job, account, prepared_rows
from alignflow.training.rl.rollouts import Prompt


class Prompts(NamedTuple):
    """What is answered, and the account of the rows that it comes from."""

    trained: list[Prompt]
    held_out: list[Prompt]
    part: str
    """Of the prepared data that they are of."""
    rows: RowAccount


def read_prompts(job: Job[Any]) -> Prompts:
    """Prompts that leave room for a response, of data.prompts or of the preferences.

    Raises:
        DataError: There is none.
    """
    data, section, stage = job.data, job.section, job.spec.stage
    part = "prompts" if data.rows("prompts").is_dir() else "preferences"
    longest = section.max_length - section.max_new_tokens
    rows = StoredRows.of(data.rows(part))
    fitting = _within(longest, rows)
    held_out = StoredRows.of(data.rows(part, "held_out")) if part == "prompts" else StoredRows([])
    fitting_held_out = _within(longest, held_out)
    trained = _distinct(fitting)
    if not trained:
        raise DataError(
            f"All {len(rows)} prompts have more than {longest} tokens, what {stage}.max_new_tokens "
            f"{section.max_new_tokens} leaves of {stage}.max_length {section.max_length}. Raise "
            "max_length."
        )
    unused = prepared_rows(job, part).held_out if part == "preferences" else len(fitting_held_out)
    rows_of = account(job, part, trained=len(fitting), held_out=unused)
    return Prompts(trained, _distinct(fitting_held_out), part, rows_of)


def _within(longest: int, rows: StoredRows) -> StoredRows:
    return rows.chosen(np.flatnonzero(rows.lengths("prompt_ids") <= longest))


def _distinct(rows: Sequence[dict[str, Any]]) -> list[Prompt]:
    """Each prompt once, with its first target."""
    first = {tuple(row["prompt_ids"]): row for row in reversed(rows)}
    return [
        Prompt(list(ids), row["prompt"], row.get("target"))
        for ids, row in sorted(first.items(), key=lambda entry: entry[0])
    ]
