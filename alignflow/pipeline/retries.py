"""Which failures are tried again, and when. Pure, but for the wait itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from alignflow.errors import AlignflowError, EvaluationError

FIRST_DELAY_SECONDS = 2.0
LONGEST_DELAY_SECONDS = 300.0
PATIENT_DELAYS_SECONDS = (5.0, 30.0, 120.0)
"""Before asking again what may be away for a while: the model registry, a judge."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


def worth_retrying(error: BaseException) -> bool:
    """Whether another attempt at a stage may help: out of memory, preemption, unexplained failures."""
    return isinstance(error, AlignflowError) and error.retried


def may_come_back(error: BaseException) -> bool:
    """Whether asking a registry or a judge again may help: not where our own checks said no."""
    return isinstance(error, EvaluationError) or not isinstance(error, AlignflowError)


def retry_delays(retries: int, first_seconds: float | None = None) -> list[float]:
    """Seconds before each further attempt: fourfold each time, at most five minutes."""
    first = FIRST_DELAY_SECONDS if first_seconds is None else first_seconds
    return [min(first * 4**attempt, LONGEST_DELAY_SECONDS) for attempt in range(retries)]


def with_retries(
    call: Callable[[], T], delays_seconds: Sequence[float], helps: Callable[[BaseException], bool]
) -> T:
    """What `call` returns at its first attempt that succeeds.

    Args:
        call: One attempt.
        delays_seconds: Waits before each further attempt.
        helps: Whether another attempt may help after an error.

    Raises:
        Exception: What the last attempt raised, or the first that another would not help.
    """
    for seconds in delays_seconds:
        try:
            return call()
        except Exception as error:
            if not helps(error):
                raise
            logger.warning("%s Another attempt begins in %g s.", error, seconds)
        time.sleep(seconds)
    return call()
