"""What the launcher reads out of a stage's events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_spec

from alignflow.errors import OutOfMemory
from alignflow.stages.environment import stage_environment
from alignflow.stages.events import EVENTS_FILE, read_events
from alignflow.stages.launch import (
    next_attempt,
    record_failure,
    with_first_threads,
    with_smaller_micro_batch,
)


def failures(count: int, exit_code: int = 67) -> list[dict[str, Any]]:
    return [
        {"kind": "error", "attempt": attempt, "exit_code": exit_code}
        for attempt in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("batch", "start", "halvings", "expected"),
    [
        (8, "auto", 1, 4),
        (8, "auto", 3, 1),
        (8, "auto", 9, 1),
        (12, "auto", 1, 6),
        (12, "auto", 2, 3),
        (6, "auto", 2, 1),
        (9, "auto", 1, 3),  # 4 does not divide 9
        (16, 4, 1, 2),
        (64, "auto", 1, 8),  # the first attempt had 16 on a CPU
        (64, 64, 1, 32),
        (4, 64, 1, 2),
    ],
)
def test_the_micro_batch_is_halved_to_a_divisor_of_the_same_effective_batch(
    batch: int, start: int | str, halvings: int, expected: int
) -> None:
    spec = fake_spec(Path("/home"), micro_batch_size=start)
    spec = spec.model_copy(update={"params": {"section": {"batch_size": batch}}})
    smaller = with_smaller_micro_batch(spec, failures(halvings))
    assert smaller.compute.micro_batch_size == expected
    assert smaller.key == spec.key


def test_kto_is_never_halved_below_the_two_rows_that_it_compares() -> None:
    spec = fake_spec(Path("/home")).model_copy(update={"stage": "kto"})
    for batch, expected in ((16, 2), (9, 3), (7, 7)):
        part = spec.model_copy(update={"params": {"section": {"batch_size": batch}}})
        smaller = with_smaller_micro_batch(part, failures(9))
        assert smaller.compute.micro_batch_size == expected


def test_ppo_halves_what_its_forward_passes_hold_which_is_a_minibatch() -> None:
    spec = fake_spec(Path("/home"), micro_batch_size=64)
    section = {"batch_size": 64, "num_mini_batches": 4}
    spec = spec.model_copy(update={"params": {"section": section}})
    assert with_smaller_micro_batch(spec, failures(1)).compute.micro_batch_size == 8


def test_every_attempt_has_the_threads_of_the_first() -> None:
    spec = fake_spec(Path("/home"), threads=1)
    assert with_first_threads(spec, failures(1)) is spec
    told = [{"kind": "threads", "attempt": n, "count": 5 - n} for n in (1, 2)]
    kept = with_first_threads(spec, told)
    assert kept.compute.threads == 4 and kept.key == spec.key


def test_threads_that_wait_sleep_unless_the_user_says_otherwise() -> None:
    assert stage_environment("sft", {})["OMP_WAIT_POLICY"] == "PASSIVE"
    assert stage_environment("sft", {"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "ACTIVE"


def test_other_failures_keep_the_micro_batch() -> None:
    spec = fake_spec(Path("/home"))
    assert with_smaller_micro_batch(spec, failures(3, 70)) is spec


def test_attempts_are_counted_over_all_runs() -> None:
    assert next_attempt([]) == 1
    assert next_attempt(failures(4)) == 5


def test_a_death_that_the_child_could_not_report_is_in_its_event_file(tmp_path: Path) -> None:
    (tmp_path / EVENTS_FILE).write_text('{"kind": "metrics", "att')  # torn by the kill
    record_failure(tmp_path, 2, OutOfMemory("killed"))
    events = read_events(tmp_path / EVENTS_FILE)
    assert [(event["kind"], event["attempt"], event["exit_code"]) for event in events] == [
        ("error", 2, 67)
    ]
