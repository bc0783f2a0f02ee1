"""What carries out a run: this process alone. `tasks/driver.py` does the same through Prefect."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from alignflow.gate import Verdict
from alignflow.pipeline.progress import observers
from alignflow.pipeline.retries import (
    PATIENT_DELAYS_SECONDS,
    may_come_back,
    retry_delays,
    with_retries,
    worth_retrying,
)
from alignflow.recipe import ComputeSection, RetrainSection
from alignflow.stages import forkserver
from alignflow.stages.artifacts import Artifact, find
from alignflow.stages.launch import run_stage
from alignflow.stages.spec import StageSpec

T = TypeVar("T")
Log = logging.Logger | logging.LoggerAdapter[Any]


class Driver:
    """Plain Python: attempts with waits between them, messages to `logging`, nobody to ask."""

    @property
    def log(self) -> Log:
        """Where the run says what it decided."""
        return logging.getLogger("alignflow")

    def complete_stage(self, spec: StageSpec, compute: ComputeSection) -> tuple[Artifact, bool]:
        """The stage's artifact, and whether it was there before.

        Raises:
            AlignflowError: No attempt succeeded.
        """
        finished = find(Path(spec.home), spec.stage, spec.key)
        if finished is not None:
            return finished, True
        forkserver.ensure()  # imports overlap `prepare`, and a run that is all cached needs none

        def attempt() -> Artifact:
            return run_stage(
                spec,
                on_event=lambda event: observers.stage_event(spec, event),
                server=forkserver.current(),
            )

        return with_retries(attempt, retry_delays(compute.retries), worth_retrying), False

    def once(self, name: str, step: Callable[..., T], *arguments: Any) -> T:
        """A step that is not tried again; `name` is what an overseer shows of it."""
        return step(*arguments)

    def patiently(self, name: str, step: Callable[..., T], *arguments: Any) -> T:
        """A step that talks to what may be away for a while, and is then tried again."""
        return with_retries(lambda: step(*arguments), PATIENT_DELAYS_SECONDS, may_come_back)

    def show(self, text: str, key: str, description: str) -> None:
        """Markdown for whoever watches the run."""

    def link(self, address: str) -> None:
        """The page of the run in MLflow."""

    def awaited_elsewhere(self, home: Path, name: str, snapshot: str) -> str | None:
        """Why a snapshot is to be left alone, where another run waits for a person's word on it."""

    def approved(
        self,
        verdict: Verdict,
        section: RetrainSection,
        home: Path,
        snapshot: str,
        opponent: int,
        page: str,
    ) -> Verdict:
        """The verdict, once a person has agreed where the recipe asks for one."""
        return verdict

    def forget_approval(self, home: Path, name: str, snapshot: str) -> None:
        """Called once the ledger has the verdict."""

    def send_pending(self, home: Path) -> None:
        """Sends the events in the ledger's outbox; here they wait for a run that Prefect carries out."""


IN_PROCESS = Driver()
