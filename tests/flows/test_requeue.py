"""A crashed run goes on, once for each crash, and not for ever."""

from __future__ import annotations

from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Crashed, Running

from tasks.recovery import MOST_STARTS, put_back


@flow
def crashes() -> None:
    """Never called: its runs are put into states by hand."""


def crashed(starts: int) -> UUID:
    """A run that was started so many times and crashed each time."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(crashes)
        for _ in range(starts):
            client.set_flow_run_state(run.id, Running(), force=True)
            client.set_flow_run_state(run.id, Crashed(), force=True)
        return run.id


def state_of(identity: UUID) -> str | None:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(identity).state_name


@pytest.mark.usefixtures("prefect_server")
def test_a_crashed_run_goes_on_and_a_repeated_event_changes_nothing() -> None:
    run = crashed(1)
    assert "goes on, start 2 of" in put_back.fn(f"prefect.flow-run.{run}")
    assert state_of(run) == "AwaitingRetry"
    assert "is AwaitingRetry: nothing to do" in put_back.fn(str(run))
    assert state_of(run) == "AwaitingRetry"


@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_crashes_at_every_start_is_left_for_a_person() -> None:
    run = crashed(MOST_STARTS)
    assert "left for a person" in put_back.fn(str(run))
    assert state_of(run) == "Crashed"
