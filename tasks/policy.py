"""What happens when a stage fails, hangs, or was done before. One table decides: errors.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect.concurrency.sync import concurrency

from alignflow.files import digest_json
from alignflow.pipeline import retries
from alignflow.recipe import STAGES, ComputeSection
from alignflow.stages import StageSpec, has_gpu

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
PATIENT = {
    "retries": len(retries.PATIENT_DELAYS_SECONDS),
    "retry_delay_seconds": list(retries.PATIENT_DELAYS_SECONDS),
    "retry_condition_fn": _where(retries.may_come_back),
}
"""Options of the task of a step that talks to what may be away: the model registry, a judge."""


def by_stage_key(_context: Any, parameters: dict[str, Any]) -> str:
    """Prefect's cache key: the stage key, within one home."""
    spec: StageSpec = parameters["spec"]
    return f"{spec.stage}-{spec.key}-{digest_json(spec.home)[:12]}"


def task_options(
    stage: str, compute: ComputeSection, *, finished: bool, whose: str = ""
) -> dict[str, Any]:
    """Options of the task that runs `stage`; Prefect's cache counts only if it is `finished`."""
    return {
        "name": stage,
        "task_run_name": f"{stage} of the {whose}" if whose else stage,
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
