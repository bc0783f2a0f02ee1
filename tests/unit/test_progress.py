"""What a person sees of a run: a bar that holds at 80 columns, and a line a minute elsewhere."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from alignflow.pipeline.progress import COLUMNS, Standing, observed_by, packed, shown_on, tell
from alignflow.stages import StageOutcome

SFT: Any = SimpleNamespace(stage="sft")


def at(seconds: float, done: float, total: float = 60, unit: str = "steps") -> dict[str, Any]:
    return {"kind": "progress", "done": done, "total": total, "unit": unit, "time": seconds}


def loss(value: float, seconds: float = 0.0) -> dict[str, Any]:
    return {"kind": "metrics", "values": {"loss": value}, "time": seconds}


def test_rate_and_time_left_are_those_of_the_newest_events() -> None:
    standing = Standing()
    for event in (at(0, 0), at(10, 20), loss(0.51234)):
        assert standing.take(event)
    assert standing.line == "20/60 steps  2.0/s  0:20 left  loss 0.512"
    standing.take(at(1000, 1, total=30, unit="responses"))
    assert standing.line == "1/30 responses  loss 0.512", "another phase has a rate of its own"
    standing.take(at(7300, 2, total=30, unit="responses"))
    assert standing.line.startswith("2/30 responses  6300.0 s each  49:00:00 left")


def test_a_retry_that_begins_again_counts_from_there() -> None:
    standing = Standing()
    for event in (at(0, 30), at(10, 40), at(100, 0), at(101, 1)):
        standing.take(event)
    assert standing.rate == "1.0/s"


@settings(max_examples=40, deadline=None)
@example(done=1_234_567, total=7_654_321, unit="responses", seconds=9_876.0, value=1.2345678e-5)
@given(
    done=st.integers(0, 10**7),
    total=st.integers(1, 10**7),
    unit=st.sampled_from(["steps", "responses", "bytes", "rows", "tokens"]),
    seconds=st.floats(0.01, 1e6),
    value=st.floats(-1e30, 1e30).map(lambda value: round(value, 6))
    | st.just(float("nan"))
    | st.just(float("inf")),
)
def test_a_bar_holds_at_80_columns(
    done: int, total: int, unit: str, seconds: float, value: float
) -> None:
    console = Console(width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system=None)
    with shown_on(console):
        tell(lambda seen: seen.stage_started(SFT))
        for event in (
            at(0, 0, total, unit),
            at(seconds, min(done, total), total, unit),
            loss(value),
        ):
            tell(lambda seen, event=event: seen.stage_event(SFT, event))
    drawn: Any = console.file
    frames = [line for line in drawn.getvalue().replace("\r", "\n").split("\n") if "sft" in line]
    standing = Standing()
    for event in (at(0, 0, total, unit), at(seconds, min(done, total), total, unit), loss(value)):
        standing.take(event)
    last = re.sub(r"\x1b\[\d*\w", "", frames[-1]).rstrip()
    assert len(last) <= COLUMNS
    for part in (standing.count[:17], standing.rate[:11], standing.left[:13], standing.loss):
        assert part in last


def outcome(**fields: Any) -> StageOutcome:
    told = {"stage": "sft", "key": "k" * 64, "state": "completed", "seconds": 12.34, "attempts": 1}
    return StageOutcome.model_validate({**told, **fields})


def test_elsewhere_there_is_a_line_a_minute_and_one_at_the_end() -> None:
    console = Console(width=COLUMNS, file=io.StringIO())
    with shown_on(console):
        tell(lambda seen: seen.stage_started(SFT))
        for second in range(150):
            event = at(float(second), second, total=150)
            tell(lambda seen, event=event: seen.stage_event(SFT, event))
        tell(lambda seen: seen.stage_ended(outcome()))
    written: Any = console.file
    assert written.getvalue().splitlines() == [
        "sft        60/150 steps  1.0/s  1:30 left",
        "sft        120/150 steps  1.0/s  0:30 left",
        "sft        completed    12.3 s",
    ]


def test_what_ended_stands_above_the_bars_with_its_figures_on_lines_of_their_own() -> None:
    console = Console(width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system=None)
    with shown_on(console):
        tell(lambda seen: seen.stage_started(SFT))
        tell(lambda seen: seen.stage_ended(outcome(state="failed", error="it broke", attempts=4)))
    drawn: Any = console.file
    assert "sft        failed       12.3 s  4 attempts  it broke" in drawn.getvalue()
    long = [f"certificate_max_logp_difference{n} 0.09097" for n in range(3)]
    assert [*packed(long)] == [f"           {figure}" for figure in long]
    assert [*packed(["loss 0.1", "accuracy 1"])] == ["           loss 0.1  accuracy 1"]


def test_an_observer_that_raises_does_not_reach_the_stage(caplog: Any) -> None:
    class Broken:
        def stage_started(self, spec: Any) -> None:
            raise ValueError("broken")

    with observed_by(Broken()):  # type: ignore[arg-type]
        tell(lambda seen: seen.stage_started(SFT))
    assert "Broken failed" in caplog.text
