"""Who is told of stages and their events: the terminal or notebook, and MLflow.

Prefect's flows and tasks take JSON only, so observers join a context and are not passed along.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID
from rich.text import Text

from alignflow.pipeline.terminal import redraws, text_column
from alignflow.stages import StageOutcome, StageSpec

MEGABYTE = 10**6
COLUMNS, INDENT = 80, " " * 11
LINE_SECONDS = 60.0
RATE_EVENTS = 32
"""Of the newest events the rate is taken."""
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


def _ended_lines(outcome: StageOutcome) -> Iterator[str]:
    """How a stage ended, and below it what it measured."""
    parts = [f"{outcome.stage:<9}  {outcome.state:<9} {outcome.seconds:7.1f} s"]
    if outcome.attempts > 1:
        parts.append(f"{outcome.attempts} attempts")
    if outcome.error:
        parts.append(outcome.error)
    yield "  ".join(parts)
    if outcome.result and not outcome.error:
        yield from packed(_figures(outcome.result.metrics))


def _figures(metrics: Mapping[str, float | None], at_most: int = 3) -> list[str]:
    shown = [(name, value) for name, value in metrics.items() if value is not None][:at_most]
    return [f"{name} {value:.4g}" for name, value in shown]


def packed(figures: Iterable[str]) -> Iterator[str]:
    """Figures below a stage's name, as many a line as 80 columns hold."""
    line = ""
    for figure in figures:
        longer = f"{line}  {figure}" if line else f"{INDENT}{figure}"
        if line and len(longer) > COLUMNS:
            yield line
            longer = f"{INDENT}{figure}"
        line = longer
    if line:
        yield line


def shown(done: float, total: float, unit: str) -> tuple[float, float, str]:
    """Progress in a unit that people read: bytes as whole MB."""
    if unit != "bytes":
        return done, total, unit
    return math.ceil(done / MEGABYTE), math.ceil(total / MEGABYTE), "MB"


def trouble(spec: StageSpec, event: Mapping[str, Any]) -> str | None:
    """What an event says that goes wrong."""
    wrong = event["kind"] == "error" or event.get("level") in ("warning", "error")
    return f"{spec.stage}: {event['text']}" if wrong else None


class Standing:
    """How far a stage is, by its events."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=RATE_EVENTS)
        self.done, self.total, self.unit = 0.0, 0.0, ""
        self._loss: float | None = None

    def take(self, event: Mapping[str, Any]) -> bool:
        """Whether the event said something of it."""
        if event["kind"] == "progress":
            done, total, unit = shown(event["done"], event["total"], event["unit"])
            if (total, unit) != (self.total, self.unit) or done < self.done:
                self._seen.clear()  # another phase, or another attempt
            self.done, self.total, self.unit = done, total, unit
            self._seen.append((event["time"], done))
        elif event["kind"] == "metrics" and "loss" in event["values"]:
            self._loss = event["values"]["loss"]
        else:
            return False
        return True

    @property
    def count(self) -> str:
        """`12/60 steps`."""
        return f"{self.done:.0f}/{self.total:.0f} {self.unit}" if self.total else f"{self.done:.0f}"

    @property
    def rate(self) -> str:
        """`3.4/s`, or `12.1 s each`; empty where nothing is known yet."""
        each = self._seconds_each
        if each is None:
            return ""
        return f"{each:.1f} s each" if each > 1 else f"{1 / each:.1f}/s"

    @property
    def left(self) -> str:
        """`1:05 left`."""
        each = self._seconds_each
        if each is None or self.done >= self.total:
            return ""
        minutes, seconds = divmod(round((self.total - self.done) * each), 60)
        hours, minutes = divmod(minutes, 60)
        return (
            f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"
        )

    @property
    def loss(self) -> str:
        """`loss 0.512`."""
        return "" if self._loss is None else f"loss {self._loss:.3g}"

    @property
    def line(self) -> str:
        """All of it."""
        return "  ".join(part for part in (self.count, self.rate, self.left, self.loss) if part)

    @property
    def _seconds_each(self) -> float | None:
        if len(self._seen) < 2:
            return None
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (ended - began) / (last - first) if ended > began and last > first else None


class Lines:
    """A line or two per stage and one a minute meanwhile, for output that is not a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._standings: dict[str, Standing] = {}
        self._told: dict[str, float] = {}

    def stage_started(self, spec: StageSpec) -> None:
        """Says nothing: a line comes at the end, and each minute."""
        self._standings.setdefault(spec.stage, Standing())

    def stage_event(self, spec: StageSpec, event: Mapping[str, Any]) -> None:
        """Repeats what goes wrong at once, and how far the stage is once a minute."""
        if text := trouble(spec, event):
            self._print(text)
        standing = self._standings.setdefault(spec.stage, Standing())
        if not standing.take(event):
            return
        told = self._told.setdefault(spec.stage, event["time"])
        if event["time"] - told >= LINE_SECONDS:
            self._told[spec.stage] = event["time"]
            self._print(f"{spec.stage:<9}  {standing.line}")

    def stage_ended(self, outcome: StageOutcome) -> None:
        """How it ended, and its figures."""
        for line in _ended_lines(outcome):
            self._print(line)

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


class Bars:
    """A bar per stage that runs, with rate, time left and loss; what ended stands above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def stage_started(self, spec: StageSpec) -> None:
        """A new bar."""
        if spec.stage not in self._tasks:
            task = self._progress.add_task(spec.stage, total=None, standing=Standing())
            self._tasks[spec.stage] = task

    def stage_event(self, spec: StageSpec, event: Mapping[str, Any]) -> None:
        """Moves the bar, or repeats what goes wrong above it."""
        if text := trouble(spec, event):
            self._progress.console.print(Text(text), soft_wrap=False)
        name = self._tasks.get(spec.stage)
        if name is None:
            return
        [task] = [task for task in self._progress.tasks if task.id == name]
        standing: Standing = task.fields["standing"]
        if standing.take(event):
            self._progress.update(name, completed=standing.done, total=standing.total or None)

    def stage_ended(self, outcome: StageOutcome) -> None:
        """How it ended and its figures, in place of the bar."""
        if outcome.stage not in self._tasks and outcome.state == "skipped":
            return
        if (task := self._tasks.pop(outcome.stage, None)) is not None:
            self._progress.remove_task(task)
        for line in _ended_lines(outcome):
            self._progress.console.print(Text(line), soft_wrap=False)


@contextmanager
def shown_on(console: Console | None) -> Iterator[None]:
    """Shows the stages of a run: bars on a terminal or in a notebook, lines elsewhere.

    In a notebook rich draws with ipywidgets; without them there are lines. None shows nothing.
    """
    if console is None:
        yield
    elif not (redraws(console) or (console.is_jupyter and _has_widgets())):
        with observed_by(Lines(console)):
            yield
    else:
        columns = (
            text_column("{task.description:<9}"),
            BarColumn(bar_width=11),
            text_column("{task.fields[standing].count:>17.17}"),
            text_column("{task.fields[standing].rate:>11.11}"),
            text_column("{task.fields[standing].left:>13.13}"),
            text_column("{task.fields[standing].loss:<14.14}"),
        )
        with Progress(*columns, console=console) as progress, observed_by(Bars(progress)):
            yield


def _has_widgets() -> bool:
    return importlib.util.find_spec("ipywidgets") is not None
