"""The present flow run on Prefect's server: its name, its page, and what is idle and forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL
from prefect.utilities.urls import url_for

from alignflow.machine import first_line
from alignflow.services import ends_with_the_run

IDLE = "idle"
"""Tag of a run that found nothing to do."""
KEPT = timedelta(hours=1)
FORGOTTEN_AT_ONCE = 200


def _unless_away(change: Callable[..., None]) -> Callable[..., None]:
    """`change`, except that its failure stands in the log alone; without a flow run it does nothing."""

    @wraps(change)
    def changed(*arguments: Any) -> None:
        if flow_run.id is None:
            return
        try:
            change(*arguments)
        except Exception as error:  # Prefect's and its transport's are many
            get_run_logger().warning("Prefect did not take a change: %s", first_line(error))

    return changed


@_unless_away
def name_run(name: str, *tags: str) -> None:
    """Names the flow run, and adds tags."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), name=name, tags=[*flow_run.tags, *tags])


@_unless_away
def forget_idle() -> None:
    """Deletes this deployment's runs that ended more than an hour ago and have the tag `idle`."""
    if not deployment.id:
        return
    idle = {
        "deployment_id": {"any_": [deployment.id]},
        "tags": {"all_": [IDLE]},
        "state": {"type": {"any_": ["COMPLETED"]}},
        "end_time": {"before_": datetime.now(UTC) - KEPT},
    }
    with get_client(sync_client=True) as client:
        chosen = FlowRunFilter.model_validate(idle)
        for run in client.read_flow_runs(flow_run_filter=chosen, limit=FORGOTTEN_AT_ONCE):
            client.delete_flow_run(run.id)


def page() -> Mapping[str, str | None] | None:
    """The flow run's id and its page; a server that ends with the run shows none."""
    if flow_run.id is None:
        return None
    shown = not ends_with_the_run(str(PREFECT_API_URL.value()))
    return {"flow_run": flow_run.id, "url": url_for("flow-run", flow_run.id) if shown else None}
