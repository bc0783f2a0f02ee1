"""Who is told of stages and their events in this process: the terminal, MLflow, Prefect.

Prefect's tasks take JSON only, so observers are registered here and not passed along.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from alignflow.stages.outcome import StageOutcome
from alignflow.stages.spec import StageSpec

MEGABYTE = 10**6
logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told what happens. What it raises is logged and does not reach the stage."""

    def stage_started(self, spec: StageSpec) -> None: ...

    def stage_event(self, spec: StageSpec, event: Mapping[str, Any]) -> None: ...

    def stage_ended(self, outcome: StageOutcome) -> None: ...


_observers: list[Observer] = []


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Tells `observer` of everything that happens inside the block."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def notify(method: str, *arguments: Any) -> None:
    """Calls a method of every observer."""
    for observer in list(_observers):
        try:
            getattr(observer, method)(*arguments)
        except Exception:
            logger.warning("an observer failed in %s", method, exc_info=True)


def _figures(outcome: StageOutcome, at_most: int = 3) -> str:
    metrics = outcome.result.metrics if outcome.result else {}
    shown = [(name, value) for name, value in metrics.items() if value is not None][:at_most]
    return "  ".join(f"{name} {value:.4g}" for name, value in shown)


def _ended_line(outcome: StageOutcome) -> str:
    parts = [f"{outcome.stage:<9} {outcome.state:<9} {outcome.seconds:6.1f} s"]
    if outcome.attempts > 1:
        parts.append(f"{outcome.attempts} attempts")
    parts.append(outcome.error or _figures(outcome))
    return "  ".join(part for part in parts if part)


def shown(done: float, total: float, unit: str) -> tuple[float, float, str]:
    """Progress in a unit that people read: bytes as whole MB."""
    if unit != "bytes":
        return done, total, unit
    return math.ceil(done / MEGABYTE), math.ceil(total / MEGABYTE), "MB"


class Lines:
    """One line per stage, for output that is not a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def stage_started(self, spec: StageSpec) -> None:
        """Says nothing: the line comes at the end."""

    def stage_event(self, spec: StageSpec, event: Mapping[str, Any]) -> None:
        """Repeats what goes wrong, nothing else."""
        if event["kind"] == "error" or event.get("level") in ("warning", "error"):
            self._console.print(
                f"{spec.stage}: {event['text']}", markup=False, highlight=False, soft_wrap=True
            )

    def stage_ended(self, outcome: StageOutcome) -> None:
        """The stage's line."""
        self._console.print(_ended_line(outcome), markup=False, highlight=False, soft_wrap=True)


class Bars:
    """A bar per stage with rate and time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def stage_started(self, spec: StageSpec) -> None:
        """A new bar."""
        if spec.stage not in self._tasks:
            self._tasks[spec.stage] = self._progress.add_task(
                spec.stage, total=None, unit="", rate="", figures=""
            )

    def stage_event(self, spec: StageSpec, event: Mapping[str, Any]) -> None:
        """Moves the bar, or repeats what goes wrong above it."""
        if event["kind"] == "error" or event.get("level") in ("warning", "error"):
            self._progress.console.print(
                f"{spec.stage}: {event['text']}", markup=False, highlight=False
            )
        task = self._tasks.get(spec.stage)
        if task is None:
            return
        if event["kind"] == "progress":
            done, total, unit = shown(event["done"], event["total"], event["unit"])
            self._progress.update(task, completed=done, total=total or None, unit=unit)
            speed = self._progress.tasks[self._progress.task_ids.index(task)].speed
            self._progress.update(task, rate=f"{speed:.1f}/s" if speed else "")
        elif event["kind"] == "metrics" and "loss" in event["values"]:
            self._progress.update(task, figures=f"loss {event['values']['loss']:.3f}")

    def stage_ended(self, outcome: StageOutcome) -> None:
        """Leaves the bar full, with the stage's figures."""
        if outcome.stage not in self._tasks and outcome.state == "skipped":
            return
        task = self._tasks.get(outcome.stage)
        if task is None:
            task = self._progress.add_task(outcome.stage, total=1, unit="", rate="", figures="")
        done = outcome.state in ("completed", "cached")
        figures = _figures(outcome) if done else outcome.state
        if outcome.state == "cached":
            figures = f"cached  {figures}"
        total = self._progress.tasks[self._progress.task_ids.index(task)].total or 1
        self._progress.update(
            task, total=total, completed=total if done else None, rate="", figures=figures
        )
        self._progress.stop_task(task)


@contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Shows the stages of a run on `console`: bars on a terminal, a line per stage elsewhere."""
    if not console.is_terminal:
        with observed_by(Lines(console)):
            yield
        return
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]} {task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as progress, observed_by(Bars(progress)):
        yield
