"""Prefect carries out a run: stages and steps as tasks, a person who is asked, events that are sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.runtime import deployment
from prefect.states import Completed

from alignflow.errors import RecipeError
from alignflow.gate import Verdict
from alignflow.lineage.look import Waiting
from alignflow.lineage.run import RetrainRun
from alignflow.pipeline.driver import Driver, Log
from alignflow.recipe import ComputeSection, RetrainSection
from alignflow.settings import Settings, resolve_home
from alignflow.stages.artifacts import Artifact
from alignflow.stages.spec import StageSpec
from tasks.approval import awaited_elsewhere, forget_approval, with_approval
from tasks.events import send_pending
from tasks.policy import step_options
from tasks.prefect_artifacts import link_mlflow_run, show_markdown
from tasks.stages import complete_stage

T = TypeVar("T")


class PrefectDriver(Driver):
    """Inside a flow run."""

    @property
    def log(self) -> Log:
        """The flow run's, or the task's that asks."""
        return get_run_logger()

    def complete_stage(self, spec: StageSpec, compute: ComputeSection) -> tuple[Artifact, bool]:
        """Through the task of the stage; see tasks/stages.py."""
        return complete_stage(spec, compute)

    def once(self, name: str, step: Callable[..., T], *arguments: Any) -> T:
        """A task that is not retried."""
        return task(step, **step_options(name, patient=False))(*arguments)

    def patiently(self, name: str, step: Callable[..., T], *arguments: Any) -> T:
        """A task that is retried while what it talks to may come back."""
        return task(step, **step_options(name, patient=True))(*arguments)

    def show(self, text: str, key: str, description: str) -> None:
        """An artifact of the run."""
        show_markdown(text, key, description)

    def link(self, address: str) -> None:
        """A link from the run's page."""
        link_mlflow_run(address)

    def awaited_elsewhere(self, home: Path, name: str, snapshot: str) -> str | None:
        """Where another flow run waits for a person."""
        return awaited_elsewhere(home, name, snapshot)

    def approved(
        self,
        verdict: Verdict,
        section: RetrainSection,
        home: Path,
        snapshot: str,
        opponent: int,
        page: str,
    ) -> Verdict:
        """Waits for a person, suspended where the run is deployed."""
        return with_approval(verdict, section, home, snapshot, opponent, page)

    def forget_approval(self, home: Path, name: str, snapshot: str) -> None:
        """Others may have the snapshot."""
        forget_approval(home, name, snapshot)

    def send_pending(self, home: Path) -> None:
        """To Prefect's event stream."""
        send_pending(home)


PREFECT = PrefectDriver()


def demand_home(home: Path | None) -> Path:
    """The absolute home. A deployed flow runs in a temporary clone, so it must be told one."""
    given = home or Settings().home
    if deployment.id and not given.expanduser().is_absolute():
        raise RecipeError(
            f"The flow's home is {given}, a relative path, but a deployed flow runs in a "
            "temporary directory. Set the parameter `home` or ALIGNFLOW_HOME to an absolute "
            "directory on storage that every worker mounts."
        )
    return resolve_home(home)


def ended(run: RetrainRun) -> State[dict[str, Any]]:
    """A Completed state that says what came out."""
    return Completed(message=run.notes.outcome, data=run.report)


def nothing_to_do(waiting: Waiting) -> State[dict[str, Any]]:
    """A Completed state that says why nothing was trained."""
    get_run_logger().info("%s", waiting.text)
    return Completed(message=waiting.text, data=waiting.model_dump())
