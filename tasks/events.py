"""Telling Prefect what the ledger has decided: after the commit, at least once, as a hint."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from prefect import get_run_logger, task
from prefect.client.orchestration import get_client

from alignflow.ledger import PROMOTED, Event, mark_sent, pending_events

NAMESPACE = uuid.UUID("5b6a0d1e-4c1d-4c56-9b0c-0f2f5a3f7c11")


@task
def send_pending(home: Path) -> int:
    """Sends the events of the ledger's outbox, oldest first.

    An event leaves the outbox once the server has acknowledged it. Where it cannot, the rest stays
    for the next call, so an event is sent at least once; its id is the same each time.

    Args:
        home: Absolute home.

    Returns:
        How many were sent.
    """
    log, sent = get_run_logger(), 0
    for event in pending_events(home):
        try:
            post(event, home)
        except httpx.HTTPError as error:
            why = f"{type(error).__name__}: {error}"
            text = "%s was not sent (%s); it stays in the outbox and is sent by the next run"
            log.warning(text, event.event, why)
            break
        mark_sent(home, event.key)
        sent += 1
    return sent


def post(event: Event, home: Path) -> None:
    """Sends one event and waits until the server has it. `emit_event` would not tell.

    Raises:
        httpx.HTTPError: The server cannot be reached, or refuses it.
    """
    with get_client(sync_client=True) as client:
        response = client.request("POST", "/events", json=[as_prefect_event(event, home)])
    response.raise_for_status()


def as_prefect_event(event: Event, home: Path) -> dict[str, Any]:
    """The event in Prefect's form."""
    kind, name = (
        ("model", event.payload["model"])
        if event.event == PROMOTED
        else ("preferences", event.payload["set"])
    )
    return {
        "id": str(uuid.uuid5(NAMESPACE, f"{home}\n{event.key}\n{event.created}")),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event.event,
        "resource": {
            "prefect.resource.id": f"alignflow.{kind}.{name}",
            "prefect.resource.name": name,
        },
        "related": [],
        "payload": event.payload,
    }
