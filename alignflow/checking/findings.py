"""What a check says: errors that stop a run, warnings, advice, and facts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from alignflow.errors import BY_EXIT_CODE, AlignflowError, RecipeError
from alignflow.stages import Record

Level = Literal["error", "warning", "advice", "note"]


class Finding(Record):
    """One thing to know about a recipe."""

    level: Level
    field: str
    """Field of the recipe it is about, dotted; may be empty."""
    text: str
    """What is the matter, with the value, and what to do."""
    exit_code: int = 0
    """Of the run that this would stop; 0 for what stops none."""

    @property
    def line(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text


def error(field: str, text: str, kind: type[AlignflowError] = RecipeError) -> Finding:
    """A finding that stops a run."""
    return Finding(level="error", field=field, text=text, exit_code=kind.exit_code)


def warning(field: str, text: str) -> Finding:
    """A finding that will probably spoil a run."""
    return Finding(level="warning", field=field, text=text)


def advice(field: str, text: str) -> Finding:
    """A departure from the field's rules of thumb."""
    return Finding(level="advice", field=field, text=text)


def note(field: str, text: str) -> Finding:
    """What could not be looked at, and when it will be."""
    return Finding(level="note", field=field, text=text)


def raised(problem: AlignflowError) -> Finding:
    """An exception as a finding; what stands before its first colon may be the field."""
    head, colon, rest = problem.message.partition(": ")
    is_field = bool(colon) and " " not in head and "/" not in head and not head.endswith(".yaml")
    field, text = (head, rest) if is_field else ("", problem.message)
    return Finding(level="error", field=field, text=text, exit_code=problem.exit_code)


def exit_code(findings: Iterable[Finding]) -> int:
    """The lowest code of the errors: the recipe's before the data's before the disk's; 0 if none."""
    return min((finding.exit_code for finding in findings if finding.level == "error"), default=0)


def raise_errors(where: str, findings: Iterable[Finding]) -> None:
    """Raises the errors among `findings`, all in one message.

    Raises:
        AlignflowError: Of the kind of the lowest exit code.
    """
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        kind: Any = BY_EXIT_CODE[exit_code(errors)]
        raise kind("\n".join(f"{where}: {finding.line}" for finding in errors))
