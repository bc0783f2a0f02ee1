"""What happens when a stage fails, hangs, or was done before. One table decides: errors.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.concurrency.sync import concurrency

from alignflow.errors import AlignflowError
from alignflow.files import digest_json
from alignflow.recipe import STAGES, ComputeSection
from alignflow.stages.device import has_gpu
from alignflow.stages.spec import StageSpec

FIRST_DELAY_SECONDS = 2.0
LONGEST_DELAY_SECONDS = 300.0
GPU_LIMIT = "gpu"
PREFECT_TIMEOUT_MARGIN_SECONDS = 120


def worth_retrying(_task: Any, _task_run: Any, state: Any) -> bool:
    """Whether another attempt may help: out of memory, preemption and unexplained failures."""
    try:
        state.result()
    except AlignflowError as error:
        return error.retried
    except Exception:
        return False
    return False


def retry_delays(retries: int, first_seconds: float | None = None) -> list[float]:
    """Seconds before each further attempt: fourfold each time, at most five minutes."""
    first = FIRST_DELAY_SECONDS if first_seconds is None else first_seconds
    return [min(first * 4**attempt, LONGEST_DELAY_SECONDS) for attempt in range(retries)]


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
        "retry_delay_seconds": retry_delays(compute.retries),
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
