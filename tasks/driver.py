"""Prefect carries out a run: stages and steps as tasks, a person who is asked, events that are sent."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import deployment
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed

from alignflow.errors import RecipeError
from alignflow.lineage import RetrainRun, Waiting
from alignflow.machine import fault_of, first_line
from alignflow.pipeline import NOTHING_TO_DO, Driver, decision
from alignflow.recipe import Recipe
from alignflow.services import absolute_home
from alignflow.settings import Settings, resolve_home, without_password
from tasks.approval import awaited_elsewhere, forget_approval, with_approval
from tasks.events import send_pending
from tasks.flow_runs import name_run, page
from tasks.policy import PATIENT
from tasks.prefect_artifacts import show_link, show_markdown
from tasks.stages import complete_stage

T = TypeVar("T")


def _once(name: str, step: Callable[..., T], *arguments: Any, **options: Any) -> T:
    named = {"name": name, "task_run_name": name, "cache_policy": NO_CACHE}
    return task(step, **named, **options)(*arguments)


def prefect_driver(recipe: str) -> Driver:
    """Prefect, which shows what belongs to a recipe of this name."""
    return Driver(
        complete_stage=partial(complete_stage, recipe),
        once=_once,
        patiently=partial(_once, **PATIENT),
        log=get_run_logger,
        show=partial(show_markdown, recipe),
        link=partial(show_link, recipe),
        named=name_run,
        page=page,
        awaited_elsewhere=awaited_elsewhere,
        approved=with_approval,
        forget_approval=forget_approval,
        send_pending=send_pending,
    )


def demand_server() -> None:
    """Refuses a Prefect server that could not carry a flow.

    Raises:
        RecipeError: PREFECT_API_URL is no Prefect API's, or it wants other credentials.
        StageError: Nothing answers there; this may pass.
    """
    address = without_password(str(PREFECT_API_URL.value()))
    try:
        with get_client(sync_client=True) as client:
            client.read_flows(limit=1)
    except Exception as error:
        if fault := fault_of(error):
            raise fault from error
        raise RecipeError(
            f"PREFECT_API_URL is {address}, which is no Prefect API ({first_line(error)}). It ends in "
            "/api, as in http://127.0.0.1:4200/api; unset it for a temporary server of the run."
        ) from error


def demand_home(home: Path | None) -> Path:
    """The absolute home. A deployed flow runs in a temporary clone, so it must be told one."""
    return absolute_home(home or Settings().home) if deployment.id else resolve_home(home)


def ended(run: RetrainRun) -> State[dict[str, Any]]:
    """A Completed state, named for the verdict, that says what came out."""
    name = decision(run.notes.model_dump())
    return Completed(name=name, message=run.notes.outcome, data=run.report)


def nothing_to_do(recipe: Recipe, waiting: Waiting) -> State[dict[str, Any]]:
    """A Completed state that says why nothing was trained."""
    get_run_logger().info("%s", waiting.text)
    name_run(f"{recipe.registered_model}, {NOTHING_TO_DO.lower()}")
    return Completed(name=NOTHING_TO_DO, message=waiting.text, data=waiting.model_dump())
