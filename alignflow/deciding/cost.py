"""What an arm costs: answering by tokens or by the hour, and training spread over the questions."""

from __future__ import annotations

from typing import NamedTuple

from alignflow.recipe import DecideSection

SECONDS_PER_HOUR = 3600.0


class Work(NamedTuple):
    """What an arm takes."""

    seconds_each: float
    """Of the machine for a question among many."""
    prompt_tokens: float
    """Of a question. All of them: a cache of a shared beginning would lessen it, and none is counted."""
    response_tokens: float
    preparing_seconds: float
    """Of training, and of making an index or paraphrases: again at each update of the documents."""


class Cost(NamedTuple):
    """In the recipe's currency."""

    answering_per_1000: float
    preparing: float
    """Once."""
    per_1000: float
    """With what is prepared in a month spread over its questions."""
    per_correct: float | None
    """None where nothing is right."""


def cost_of(work: Work, accuracy: float, section: DecideSection) -> Cost:
    """What a thousand questions cost, and a right answer."""
    answering = 1000.0 * _one_answer(work, section)
    preparing = section.prices.hour * work.preparing_seconds / SECONDS_PER_HOUR
    monthly = preparing * section.updates_per_month
    per_1000 = answering + 1000.0 * monthly / section.questions_per_month
    per_correct = per_1000 / (1000.0 * accuracy) if accuracy > 0 else None
    return Cost(answering, preparing, per_1000, per_correct)


def _one_answer(work: Work, section: DecideSection) -> float:
    prices = section.prices
    if prices.million_prompt_tokens is None:
        return prices.hour * work.seconds_each / SECONDS_PER_HOUR
    written = prices.million_response_tokens
    written = prices.million_prompt_tokens if written is None else written
    tokens = work.prompt_tokens * prices.million_prompt_tokens + work.response_tokens * written
    return tokens / 1e6


def break_even(one: Cost, other: Cost, updates_per_month: float) -> float | None:
    """Questions a month from which the arm that answers cheaper has paid its preparing.

    None where one of the two is cheaper at any volume.
    """
    dearer = updates_per_month * (one.preparing - other.preparing)
    cheaper = (other.answering_per_1000 - one.answering_per_1000) / 1000.0
    return dearer / cheaper if dearer * cheaper > 0 else None
