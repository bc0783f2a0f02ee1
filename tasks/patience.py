"""Tasks that talk to what may be away for a while: the model registry, a judge."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE

from alignflow.errors import AlignflowError, EvaluationError

DELAYS_SECONDS = [5.0, 30.0, 120.0]


def may_come_back(_task: Any, _task_run: Any, state: Any) -> bool:
    """Whether another attempt may help: not where our own checks said no."""
    try:
        state.result()
    except EvaluationError:
        return True
    except AlignflowError:
        return False
    except Exception:
        return True
    return False


def patient(name: str) -> dict[str, Any]:
    """Options of such a task."""
    return {
        "name": name,
        "task_run_name": name,
        "cache_policy": NO_CACHE,
        "retries": len(DELAYS_SECONDS),
        "retry_delay_seconds": DELAYS_SECONDS,
        "retry_condition_fn": may_come_back,
    }
