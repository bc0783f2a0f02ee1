"""Who is told of stages and their events: the terminal or notebook, and MLflow.

Prefect's flows and tasks take JSON only, so observers join a context and are not passed along.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from alignflow.pipeline.terminal import redraws, text_column
from alignflow.stages import StageOutcome, StageSpec

MEGABYTE = 10**6
logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told what happens. What it raises is logged and does not reach the stage."""

    def stage_started(self, spec: StageSpec) -> None: ...

    def stage_event(self, spec: StageSpec, event: Mapping[str, Any]) -> None: ...

    def stage_ended(self, outcome: StageOutcome) -> None: ...


_observers: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Tells `observer` of everything that happens inside the block."""
    before = _observers.set((*_observers.get(), observer))
    try:
        yield
    finally:
        _observers.reset(before)


def tell(call: Callable[[Observer], None]) -> None:
    """Makes a call to everyone who observes this context."""
    for observer in _observers.get():
        try:
            call(observer)
        except Exception:
            logger.warning("%s failed", type(observer).__name__, exc_info=True)


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


def trouble(spec: StageSpec, event: Mapping[str, Any]) -> str | None:
    """What an event says that goes wrong."""
    wrong = event["kind"] == "error" or event.get("level") in ("warning", "error")
    return f"{spec.stage}: {event['text']}" if wrong else None


class Lines:
    """One line per stage, for output that is not a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def stage_started(self, spec: StageSpec) -> None:
        """Says nothing: the line comes at the end."""

    def stage_event(self, spec: StageSpec, event: Mapping[str, Any]) -> None:
        """Repeats what goes wrong, nothing else."""
        if text := trouble(spec, event):
            self._console.print(Text(text), soft_wrap=True)

    def stage_ended(self, outcome: StageOutcome) -> None:
        """The stage's line."""
        self._console.print(Text(_ended_line(outcome)), soft_wrap=True)


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
        if text := trouble(spec, event):
            self._progress.console.print(Text(text), soft_wrap=False)
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
def shown_on(console: Console | None) -> Iterator[None]:
    """Shows the stages of a run: bars on a terminal or in a notebook, a line per stage elsewhere.

    In a notebook rich draws with ipywidgets; without them there is a line per stage. None shows
    nothing.
    """
    if console is None:
        yield
    elif not (redraws(console) or (console.is_jupyter and _has_widgets())):
        with observed_by(Lines(console)):
            yield
    else:
        columns = (
            SpinnerColumn(finished_text="✓"),
            text_column("{task.description:<9}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            text_column("{task.fields[unit]} {task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            text_column("{task.fields[figures]}"),
        )
        with Progress(*columns, console=console) as progress, observed_by(Bars(progress)):
            yield


def _has_widgets() -> bool:
    return importlib.util.find_spec("ipywidgets") is not None
