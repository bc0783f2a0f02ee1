"""Bringing a crashed flow run back: idempotent, because an event may be delivered several times."""

from __future__ import annotations

from uuid import UUID

from prefect import task
from prefect.client.orchestration import get_client
from prefect.states import AwaitingRetry

MOST_STARTS = 4


@task
def put_back(flow_run_id: str) -> str:
    """Schedules a crashed run again, by its id or `prefect.flow-run.ID`; its finished stages will be Cached.

    Returns:
        What was done, in words.
    """
    identity = UUID(flow_run_id.removeprefix("prefect.flow-run."))
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(identity)
        if run.state is None or not run.state.is_crashed():
            return f"{run.name} is {run.state_name}: nothing to do"
        if run.run_count >= MOST_STARTS:
            return f"{run.name} crashed {run.run_count} times: left for a person"
        client.set_flow_run_state(identity, AwaitingRetry(), force=True)
    return f"{run.name} goes on, start {run.run_count + 1} of {MOST_STARTS}"
