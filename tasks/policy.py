"""What happens when a stage fails, hangs, or was done before. One table decides: errors.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency

from alignflow.files import digest_json
from alignflow.pipeline import retries
from alignflow.recipe import STAGES, ComputeSection
from alignflow.stages.device import has_gpu
from alignflow.stages.spec import StageSpec

GPU_LIMIT = "gpu"
PREFECT_TIMEOUT_MARGIN_SECONDS = 120


def _where(helps: Callable[[BaseException], bool]) -> Callable[[Any, Any, Any], bool]:
    """Prefect's condition of a retry: another attempt helps after what a state failed with."""

    def condition(_task: Any, _task_run: Any, state: Any) -> bool:
        try:
            state.result()
        except Exception as error:
            return helps(error)
        return False

    return condition


worth_retrying = _where(retries.worth_retrying)
may_come_back = _where(retries.may_come_back)


def plain(name: str) -> dict[str, Any]:
    """Options of the task of a step that is no stage."""
    return {"name": name, "task_run_name": name, "cache_policy": NO_CACHE}


def patient(name: str) -> dict[str, Any]:
    """Options of such a task that talks to what may be away: the model registry, a judge."""
    delays = list(retries.PATIENT_DELAYS_SECONDS)
    again = {"retries": len(delays), "retry_delay_seconds": delays}
    return {**plain(name), **again, "retry_condition_fn": may_come_back}


def by_stage_key(_context: Any, parameters: dict[str, Any]) -> str:
    """Prefect's cache key: the stage key, within one home."""
    spec: StageSpec = parameters["spec"]
    return f"{spec.stage}-{spec.key}-{digest_json(spec.home)[:12]}"


def task_options(stage: str, compute: ComputeSection, *, finished: bool) -> dict[str, Any]:
    """Options of the task that runs `stage`.

    Args:
        stage: Names the task and its run.
        compute: Retries and limits.
        finished: Whether a verified artifact is there; without it Prefect's cache is passed over.
    """
    return {
        "name": stage,
        "task_run_name": stage,
        "tags": {"stage", *(["gpu"] if STAGES[stage].on_device else [])},
        "retries": compute.retries,
        "retry_delay_seconds": retries.retry_delays(compute.retries),
        "retry_condition_fn": worth_retrying,
        # alignflow.stages.launch keeps compute.timeout_seconds; this is for a launcher that hangs.
        "timeout_seconds": compute.timeout_seconds + PREFECT_TIMEOUT_MARGIN_SECONDS,
        "refresh_cache": not finished,
    }


@contextmanager
def device_slot(stage: str) -> Iterator[None]:
    """Holds one slot of the `gpu` concurrency limit, if the server has such a limit."""
    if not STAGES[stage].on_device or not has_gpu():
        yield
        return
    with concurrency(GPU_LIMIT, occupy=1, strict=False):
        yield
