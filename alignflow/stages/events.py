"""`events.jsonl`: all that leaves a stage's process while it runs.

One JSON object a line: `{"kind": "progress", "done": 12, "total": 60, "unit": "steps"}`,
`{"kind": "metrics", "step": 12, "values": {...}}`, `{"kind": "message", "level": "info", "text"}`,
`{"kind": "error", "exit_code", "text"}`. Lines carry `attempt` and `time` (seconds since the epoch).
The file is the spool: it outlives servers that are down and is replayed by (attempt, line).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVENTS_FILE = "events.jsonl"


class EventWriter:
    """Appends events to one stage's file. A torn last line of a killed attempt is ended first."""

    def __init__(self, path: Path, attempt: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = _is_torn(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._attempt = attempt
        if torn:
            self._file.write("\n")

    def write(self, kind: str, **fields: Any) -> None:
        """Appends one event."""
        event = {"kind": kind, "attempt": self._attempt, "time": time.time(), **fields}
        self._file.write(json.dumps(event) + "\n")

    def progress(self, done: float, total: float, unit: str = "steps") -> None:
        """Says how far the stage is."""
        self.write("progress", done=done, total=total, unit=unit)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Records figures of one step; what is not finite is left out and named."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.write(
            "metrics", step=step, values=finite, not_finite=sorted(set(values) - set(finite))
        )

    def message(self, text: str, level: str = "info") -> None:
        """Says something to the reader of the log."""
        self.write("message", level=level, text=text)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _is_torn(path: Path) -> bool:
    """Whether a killed attempt left half a line."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return bool(content) and not content.endswith(b"\n")


def written_bytes(path: Path) -> int:
    """Size of an event file; 0 where there is none, or its stage has been published."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_events(path: Path) -> list[dict[str, Any]]:
    """Every whole event of a file, in order; torn lines are skipped."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [event for line in text.splitlines() if (event := parse_event(line))]


def parse_event(line: str) -> dict[str, Any] | None:
    """One event, or None for a torn line."""
    try:
        event: dict[str, Any] | None = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


class EventTail:
    """Reads what has been appended since the last call, from where the file stood."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._offset = offset
        self._rest = b""

    def poll(self) -> Iterator[dict[str, Any]]:
        """New whole events; none once the stage has been published, which moves the file."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        self._offset += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            if event := parse_event(line.decode("utf-8", "replace")):
                yield event


def metric_history(events: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """`{metric: {step: value}}`, the latest attempt's value for a step that ran twice."""
    history: dict[str, dict[int, float]] = {}
    for event in events:
        if event["kind"] == "metrics":
            for name, value in event["values"].items():
                history.setdefault(name, {})[event["step"]] = value
    return history
