"""What carries out a run: this process alone. `tasks/driver.py` has the one that is Prefect."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from alignflow.gate import Verdict
from alignflow.pipeline.progress import tell
from alignflow.pipeline.retries import (
    PATIENT_DELAYS_SECONDS,
    may_come_back,
    retry_delays,
    with_retries,
    worth_retrying,
)
from alignflow.recipe import ComputeSection
from alignflow.stages import Artifact, StageSpec, forkserver, run_stage

T = TypeVar("T")


class Step(Protocol):
    """Has a step done that is no stage; `name` is what an overseer shows of it."""

    def __call__(self, name: str, /, step: Callable[..., T], *arguments: Any) -> T: ...


def complete_stage(
    spec: StageSpec, compute: ComputeSection, finished: Artifact | None, _whose: str
) -> tuple[Artifact, bool]:
    """The stage's artifact, and whether it was there before: `finished`, if it is given.

    Raises:
        AlignflowError: No attempt succeeded.
    """
    if finished is not None:
        return finished, True

    def attempt() -> Artifact:
        return run_stage(
            spec,
            on_event=lambda event: tell(lambda observer: observer.stage_event(spec, event)),
            server=forkserver.current(),
        )

    return with_retries(attempt, retry_delays(compute.retries), worth_retrying), False


def _patiently(_name: str, step: Callable[..., T], *arguments: Any) -> T:
    return with_retries(lambda: step(*arguments), PATIENT_DELAYS_SECONDS, may_come_back)


def _nothing(*_arguments: Any) -> None:
    """Nobody is there to see it."""


@dataclass(frozen=True)
class Driver:
    """How a run has things done; the defaults are plain Python: attempts with waits between them."""

    complete_stage: Callable[
        [StageSpec, ComputeSection, Artifact | None, str], tuple[Artifact, bool]
    ] = complete_stage
    """The last argument says whose stage it is that is not the run's own: the `champion`."""
    once: Step = lambda _name, step, *arguments: step(*arguments)
    """Not tried again."""
    patiently: Step = _patiently
    """Talks to what may be away for a while, and is then tried again."""
    log: Callable[[], logging.Logger | logging.LoggerAdapter[Any]] = lambda: logger
    """Where the run says what it decided."""
    show: Callable[[str, str, str], None] = _nothing
    """Markdown, its key and its description, for whoever watches the run."""
    link: Callable[[str, str], None] = _nothing
    """An address that belongs to the run, and what is there: `MLflow run`."""
    named: Callable[[str], None] = _nothing
    """What the run is called, for whoever looks through many."""
    page: Callable[[], Mapping[str, str | None] | None] = _nothing
    """Who carries out the run: `flow_run`, its id there, and `url`, its page, if there is one."""
    awaited_elsewhere: Callable[[Path, str, str], str | None] = _nothing
    """Why a set's snapshot is to be left alone: another run waits for a person's word on it."""
    approved: Callable[..., Verdict] = lambda verdict, *_question: verdict
    """The verdict, once a person has agreed; see tasks/approval.py."""
    forget_approval: Callable[[Path, str, str], None] = _nothing
    """Called once the ledger has the verdict."""
    send_pending: Callable[[Path], Any] = _nothing
    """Sends the events in the ledger's outbox; here they wait for a run through Prefect."""


logger = logging.getLogger("alignflow")
IN_PROCESS = Driver()
