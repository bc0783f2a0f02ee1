"""A person's word before a promotion: the run waits in the Prefect UI, with a time limit.

A deployed run is suspended: its process ends, and on resume it starts again with everything cached.
A run without a deployment waits in its process. While one waits, others leave its snapshot alone.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout, ObjectNotFound
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run

from alignflow.files import atomic_write_json
from alignflow.gate import Verdict
from alignflow.recipe import RetrainSection

POLL_SECONDS = 5


class Approval(RunInput):
    """What the person says."""

    promote: bool = False
    """Whether the candidate becomes the champion."""

    name: str = ""
    """Who decides."""

    reason: str = ""
    """Kept in the ledger."""


def awaited_elsewhere(home: Path, name: str, snapshot: str) -> str | None:
    """Why a snapshot is to be left alone: another run waits for a person's word on it."""
    note = _read(home, name, snapshot)
    if note is None or note["flow_run_id"] == flow_run.id or time.time() > note["until"]:
        return None
    if _has_ended(note["flow_run_id"]):
        forget_approval(home, name, snapshot)
        return None
    hours = (note["until"] - time.time()) / 3600
    return (
        f"snapshot {snapshot} waits for approval in flow run {note['flow_run_id']}, for {hours:.1f} "
        "hours more: nothing to do"
    )


def _has_ended(flow_run_id: str) -> bool:
    """Whether a run waits no more: cancelled, crashed or deleted. A server that is away: it waits."""
    try:
        identity = UUID(flow_run_id)
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(identity).state
    except ObjectNotFound:
        return True
    except (httpx.HTTPError, ValueError):
        return False
    return state is not None and state.is_final()


def with_approval(
    verdict: Verdict, section: RetrainSection, home: Path, snapshot: str, opponent: int, page: str
) -> Verdict:
    """The verdict, once a person has agreed to it; else inconclusive. Only promotions are asked about.

    Args:
        verdict: The gate's.
        section: Whether and for how long it is asked.
        home: Absolute home.
        snapshot: What the candidate was trained on.
        opponent: Generation that it was compared with; another one is another question.
        page: The comparison, in Markdown, shown above the form.
    """
    if verdict.verdict != "promote" or section.approval == "none":
        return verdict
    note = _read(home, section.preference_set, snapshot)
    if note is None:
        until = time.time() + section.approval_timeout_hours * 3600
        note = {"flow_run_id": flow_run.id, "until": until}
        atomic_write_json(_place(home, section.preference_set, snapshot), note)
    ours = note["flow_run_id"] == flow_run.id
    said = _ask(section, page, f"approval-{snapshot}-{opponent}") if ours else None
    if said is None:
        hours = section.approval_timeout_hours
        return _held_back(verdict, f"nobody answered within {hours:g} hours")
    who = said.name or "a person"
    because = f": {said.reason}" if said.reason else ""
    get_run_logger().info("%s said %s%s", who, "promote" if said.promote else "no", because)
    if not said.promote:
        return _held_back(verdict, f"{who} did not approve{because}")
    return verdict.model_copy(update={"reasons": [*verdict.reasons, f"approved by {who}{because}"]})


def forget_approval(home: Path, name: str, snapshot: str) -> None:
    """Called once the ledger has the verdict."""
    _place(home, name, snapshot).unlink(missing_ok=True)


def _ask(section: RetrainSection, page: str, key: str) -> Approval | None:
    seconds = int(section.approval_timeout_hours * 3600)
    form: Any = Approval.with_initial_data(description=page)
    if deployment.id:
        return suspend_flow_run(wait_for_input=form, timeout=seconds, key=key)
    try:
        return pause_flow_run(
            wait_for_input=form, timeout=seconds, poll_interval=POLL_SECONDS, key=key
        )
    except FlowPauseTimeout:
        return None


def _held_back(verdict: Verdict, why: str) -> Verdict:
    return verdict.model_copy(
        update={"verdict": "inconclusive", "reasons": [why, *verdict.reasons]}
    )


def _place(home: Path, name: str, snapshot: str) -> Path:
    return home / "work" / "approvals" / f"{name}-{snapshot}.json"


def _read(home: Path, name: str, snapshot: str) -> dict[str, Any] | None:
    try:
        return json.loads(_place(home, name, snapshot).read_text())
    except FileNotFoundError:
        return None
