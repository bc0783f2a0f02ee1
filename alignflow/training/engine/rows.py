"""A stage's rows: those of `prepare` that fit, and the account of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from alignflow.data import StoredRows
from alignflow.errors import DataError
from alignflow.stages import RowAccount
from alignflow.training.engine.job import Job

Row = dict[str, Any]


Lengths = Callable[[StoredRows], np.ndarray]
"""Tokens of each row."""


def rows_within(job: Job[Any], part: str, name: str, lengths: Lengths) -> StoredRows:
    """Rows of a part's `train` or `held_out` of at most max_length tokens.

    Raises:
        DataError: None of `train` is.
    """
    rows, limit = StoredRows.of(job.data.rows(part, name)), job.section.max_length
    kept = rows.chosen(np.flatnonzero(lengths(rows) <= limit))
    if name == "train" and not kept:
        raise DataError(
            f"All {len(rows)} rows are longer than max_length {limit}. Raise max_length."
        )
    return kept


def demonstration_rows(job: Job[Any]) -> StoredRows:
    """Demonstrations in token ids that fit max_length."""
    return rows_within(job, "sft", "train", lambda rows: rows.lengths("input_ids"))


def prepared_rows(job: Job[Any], part: str) -> RowAccount:
    """What `prepare` says of a part's rows."""
    return RowAccount(**json.loads(job.data.accounts.read_text())[part])


def account(job: Job[Any], *parts: str, trained: int, held_out: int = 0) -> RowAccount:
    """The row account of a stage: that of `prepare`, and rows this stage alone finds too long."""
    prepared = RowAccount.total(prepared_rows(job, part) for part in parts)
    lost = prepared.trained + prepared.held_out - trained - held_out
    return RowAccount(
        read=prepared.read,
        trained=trained,
        held_out=held_out,
        dropped=dict(Counter(prepared.dropped) + Counter({"too_long": lost})),
    )
