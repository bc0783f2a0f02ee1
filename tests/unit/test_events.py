from __future__ import annotations

from pathlib import Path

import pytest

from alignflow.stages.events import EventTail, EventWriter, metric_history, read_events


def test_a_line_torn_by_a_kill_loses_no_neighbour(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path, attempt=1)
    writer.progress(1, 10)
    writer.close()
    with path.open("a") as file:
        file.write('{"kind": "progr')
    writer = EventWriter(path, attempt=2)
    writer.message("again")
    writer.close()
    assert [(event["kind"], event["attempt"]) for event in read_events(path)] == [
        ("progress", 1),
        ("message", 2),
    ]


def test_a_tail_yields_each_event_once_and_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert list(tail.poll()) == []
    path.write_text('{"kind": "a"}\n{"kind":')
    assert [event["kind"] for event in tail.poll()] == ["a"]
    with path.open("a") as file:
        file.write(' "b"}\n')
    assert [event["kind"] for event in tail.poll()] == ["b"]
    assert list(tail.poll()) == []


def test_a_step_that_ran_twice_counts_once_with_its_later_value(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for attempt, value in ((1, 0.5), (2, 0.25)):
        writer = EventWriter(path, attempt)
        writer.metrics(10, {"loss": value})
        writer.close()
    assert metric_history(read_events(path)) == {"loss": {10: 0.25}}


def test_what_is_not_finite_is_named_and_never_a_number(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path, 1)
    writer.metrics(1, {"loss": float("nan"), "grad_norm": 2.0})
    writer.close()
    (event,) = read_events(path)
    assert event["values"] == {"grad_norm": 2.0}
    assert event["not_finite"] == ["loss"]


def test_a_file_that_is_moved_between_two_looks_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage publishes by a rename while its events are read."""
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "a"}\n')
    monkeypatch.setattr(Path, "exists", lambda *_: True)
    path.rename(tmp_path / "elsewhere")
    assert list(EventTail(path).poll()) == [] and read_events(path) == []
