"""Why a row is dropped, and that nothing it holds ends more than itself. No torch."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from alignflow.errors import AlignflowError

UNREADABLE = "unreadable"
MAX_MESSAGE_CHARACTERS = 300
_PLAIN_REASONS = {
    "type": "not_messages",
    "empty": "empty",
    "missing": "missing_columns",
    "role_order:unknown": "unknown_role",
    "chosen_equals_rejected": "equal_responses",
}
"""Reasons of the ledger, or how they begin, to what `prepare` and `check` count such rows under."""


class BadRow(Exception):
    """A row that is dropped. `reason` is what it is counted under; the message says more."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


@contextmanager
def one_row() -> Generator[None]:
    """Whatever goes wrong with a row costs that row, and no other.

    Raises:
        BadRow: Something of the row's went wrong.
    """
    try:
        yield
    except (BadRow, AlignflowError, MemoryError):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[:MAX_MESSAGE_CHARACTERS]
        raise BadRow(UNREADABLE, text) from error


@contextmanager
def plain_reasons() -> Generator[None]:
    """Counts a bad row under the fewer reasons of `prepare`; its message stays."""
    try:
        yield
    except BadRow as bad:
        begins = bad.reason.partition(":")[0]
        plain = _PLAIN_REASONS.get(bad.reason) or _PLAIN_REASONS.get(begins, bad.reason)
        raise BadRow(plain, str(bad)) from bad


def kind(value: Any) -> str:
    """Name of a value's type, for messages."""
    return "null" if value is None else type(value).__name__
