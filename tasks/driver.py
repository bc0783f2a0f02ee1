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
from alignflow.lineage.look import Waiting
from alignflow.lineage.run import RetrainRun
from alignflow.pipeline.driver import Driver
from alignflow.settings import Settings, resolve_home
from tasks.approval import awaited_elsewhere, forget_approval, with_approval
from tasks.events import send_pending
from tasks.policy import patient, plain
from tasks.prefect_artifacts import link_mlflow_run, show_markdown
from tasks.stages import complete_stage

T = TypeVar("T")


def _once(name: str, step: Callable[..., T], *arguments: Any) -> T:
    return task(step, **plain(name))(*arguments)


def _patiently(name: str, step: Callable[..., T], *arguments: Any) -> T:
    return task(step, **patient(name))(*arguments)


PREFECT = Driver(
    complete_stage=complete_stage,
    once=_once,
    patiently=_patiently,
    log=get_run_logger,
    show=show_markdown,
    link=link_mlflow_run,
    awaited_elsewhere=awaited_elsewhere,
    approved=with_approval,
    forget_approval=forget_approval,
    send_pending=send_pending,
)


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
