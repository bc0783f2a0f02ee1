"""Prefect carries out a run: stages and steps as tasks, a person who is asked, events that are sent."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import deployment
from prefect.states import Completed

from alignflow.lineage import RetrainRun, Waiting
from alignflow.pipeline import Driver
from alignflow.services import absolute_home
from alignflow.settings import Settings, resolve_home
from tasks.approval import awaited_elsewhere, forget_approval, with_approval
from tasks.events import send_pending
from tasks.policy import PATIENT
from tasks.prefect_artifacts import link_mlflow_run, show_markdown
from tasks.stages import complete_stage

T = TypeVar("T")


def _once(name: str, step: Callable[..., T], *arguments: Any, **options: Any) -> T:
    named = {"name": name, "task_run_name": name, "cache_policy": NO_CACHE}
    return task(step, **named, **options)(*arguments)


PREFECT = Driver(
    complete_stage=complete_stage,
    once=_once,
    patiently=partial(_once, **PATIENT),
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
    return absolute_home(home or Settings().home) if deployment.id else resolve_home(home)


def ended(run: RetrainRun) -> State[dict[str, Any]]:
    """A Completed state that says what came out."""
    return Completed(message=run.notes.outcome, data=run.report)


def nothing_to_do(waiting: Waiting) -> State[dict[str, Any]]:
    """A Completed state that says why nothing was trained."""
    get_run_logger().info("%s", waiting.text)
    return Completed(message=waiting.text, data=waiting.model_dump())
