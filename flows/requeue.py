"""Puts a crashed run back into the queue. Started by an automation."""

from __future__ import annotations

from prefect import flow

from tasks.recovery import put_back


@flow(name="requeue")
def requeue(flow_run_id: str) -> str:
    """Lets a crashed run go on, unless it has already gone on or has crashed too often.

    Args:
        flow_run_id: Id of the run, or `prefect.flow-run.ID` as events name it.
    """
    return put_back(flow_run_id)
