"""The flow's process and its stages' are killed; nothing stays alive and nothing is done twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_runs import (
    STAGES,
    alive,
    executions,
    fake_recipe,
    pids_of,
    start_flow,
    states,
    wait_until,
)

from alignflow.stages.artifacts import artifact_directory
from alignflow.stages.events import EVENTS_FILE, metric_history, read_events
from flows.finetune import finetune


@pytest.fixture
def flows(home: Path, prefect_server: str, orders: Path) -> Iterator[list[subprocess.Popen]]:
    """Processes to be ended after the test."""
    started: list[subprocess.Popen] = []
    yield started
    for flow in started:
        flow.kill()
        flow.wait()


def children_of(pid: int) -> list[int]:
    """Every process below `pid`, wherever its group."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            child = int(path.parent.name)
            found += [child, *children_of(child)]
    return found


# a fresh process, and one that was forked
@pytest.mark.parametrize("stage", [pytest.param("prepare", marks=pytest.mark.proof), "sft"])
def test_a_killed_flow_leaves_no_process_and_the_next_run_goes_on_from_the_checkpoint(
    stage: str, home: Path, orders: Path, prefect_server: str, flows: list
) -> None:
    (orders / stage).write_text("sleep_once:120")
    flow = start_flow(home, prefect_server)
    flows.append(flow)
    wait_until(lambda: pids_of(home, stage), 60)
    below = children_of(flow.pid)
    assert set(pids_of(home, stage)) <= set(below)
    os.kill(flow.pid, signal.SIGKILL)
    flow.wait()
    wait_until(lambda: not any(alive(pid) for pid in below), 5)

    report = finetune(recipe=fake_recipe(), home=home)
    assert report["status"] == "completed"
    before = list(STAGES[: STAGES.index(stage)])
    assert executions(orders) == [*before, stage, *STAGES[len(before) :]]
    assert states(report) == dict.fromkeys(STAGES, "completed") | dict.fromkeys(before, "cached")
    entry = report["stages"][len(before)]
    assert entry["attempts"] == 2
    events = read_events(artifact_directory(home, stage, entry["key"]) / EVENTS_FILE)
    assert "resumed from step 2" in [event.get("text") for event in events]
    assert set(metric_history(events)["loss"]) == {1, 2, 3}


def test_a_stage_killed_at_a_random_moment_is_retried_and_the_run_completes(
    home: Path, orders: Path, prefect_server: str
) -> None:
    (orders / "sft").write_text("sleep_once:120")
    wait = random.Random().uniform(0.0, 1.0)

    def kill() -> None:
        pid = wait_until(lambda: pids_of(home, "sft"))[0]
        threading.Event().wait(wait)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    report = finetune(recipe=fake_recipe(), home=home)
    killer.join()
    assert report["status"] == "completed"
    assert report["stages"][1]["attempts"] == 2
    assert executions(orders) == ["prepare", "sft", *STAGES[1:]]


def test_an_interrupted_flow_ends_its_stage_and_reports_that_it_was_cancelled(
    home: Path, orders: Path, prefect_server: str, flows: list
) -> None:
    (orders / "sft").write_text("sleep_once:120")
    flow = start_flow(home, prefect_server)
    flows.append(flow)
    wait_until(lambda: pids_of(home, "sft"), 60)
    below = children_of(flow.pid)
    flow.send_signal(signal.SIGINT)
    flow.wait(30)
    wait_until(lambda: not any(alive(pid) for pid in below), 5)
    report = next(home.glob("runs/*/report.json")).read_text()
    assert '"status": "cancelled"' in report
