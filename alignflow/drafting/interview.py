"""The few questions whose answers neither files nor machine tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

MOST_QUESTIONS = 5


class Question(NamedTuple):
    """A choice of a person's."""

    text: str
    choices: tuple[str, ...]
    default: str


class Interview:
    """Asks what is asked of it, at most MOST_QUESTIONS times; then, or of nobody, defaults stand."""

    def __init__(self, ask: Callable[[Question], str] | None = None) -> None:
        self._ask = ask
        self.asked = 0

    @property
    def is_heard(self) -> bool:
        """Whether somebody would answer."""
        return self._ask is not None and self.asked < MOST_QUESTIONS

    def choice(self, text: str, choices: Sequence[str], default: str) -> str:
        """The answer, one of `choices`."""
        if self._ask is None or not self.is_heard or len(choices) < 2:
            return default
        self.asked += 1
        return self._ask(Question(text, tuple(choices), default))
