"""Rejection sampling: what is kept of the samples, where the rows go, and that they are drawn once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stage_runs import (
    make_spec,
    prepare_spec,
    question,
    run_and_publish,
    run_stage,
    work_of,
    write_lines,
)

from alignflow.errors import DataError
from alignflow.files import read_certified, write_certified
from alignflow.stages.artifacts import Artifact
from alignflow.training.methods.rft import SAMPLES_FILE, Sample, best_of

LIKES_SHORT = """
def short(prompts, responses, targets):
    return [-float(len(response)) for response in responses]
"""
SETTINGS: dict[str, Any] = {"num_generations": 8, "max_new_tokens": 40, "batch_size": 8}


@pytest.fixture
def short(tmp_path: Path) -> str:
    """A reward that likes short responses."""
    path = tmp_path / "short.py"
    path.write_text(LIKES_SHORT)
    return f"{path}:short"


FIRST, EQUAL, WORSE = (
    Sample([5, 1], True, 2.0),
    Sample([6, 1], True, 2.0),
    Sample([7, 1], True, 1.0),
)
OPEN = Sample([8, 9], False, 9.0)


@pytest.mark.parametrize(
    ("samples", "min_reward", "best"),
    [
        ([WORSE, FIRST, EQUAL], None, FIRST),  # the first of equals
        ([OPEN, WORSE], None, WORSE),  # one that did not end is never kept, whatever it is worth
        ([OPEN], None, None),
        ([WORSE, FIRST], 1.5, FIRST),
        ([WORSE, FIRST], 2.0, None),  # above, not at
        ([], None, None),
    ],
)
def test_the_best_finished_sample_is_kept_if_it_is_good_enough(
    samples: list[Sample], min_reward: float | None, best: Sample | None
) -> None:
    assert best_of(samples, min_reward) is best


@pytest.fixture
def twice(tiny_base: Path, tmp_path: Path) -> Artifact:
    """A prepare artifact in whose prompts every other one stands twice."""
    numbers = [n for n in range(24) for _ in range(1 + n % 2)]
    rows = [{"prompt": question(n)} for n in numbers]
    prompts = write_lines(tmp_path / "prompts.jsonl", rows)
    spec = prepare_spec(tmp_path / "home", tiny_base, {"prompts": prompts}, held_out_share=0.0)
    spec.params["limits"]["prompts"] = 64
    return run_and_publish(spec)


@pytest.mark.parametrize("mode", ["lora", "qlora", "full"])
def test_every_prompt_is_accounted_for_and_learned_once(
    twice: Artifact, tmp_path: Path, short: str, mode: str
) -> None:
    spec = make_spec(twice, tmp_path, "rft", mode=mode, rewards=[short], **SETTINGS)
    result = run_stage(spec)
    rows = result.rows
    assert rows is not None and rows.balanced and rows.read == 36
    assert rows.dropped["duplicate"] == 12
    assert rows.trained + rows.dropped.get("no_good_response", 0) == 24
    groups = [
        [Sample(*sample) for sample in group]
        for group in read_certified(work_of(spec) / SAMPLES_FILE)
    ]
    assert [len(group) for group in groups] == [8] * 24
    best = [kept for group in groups if (kept := best_of(group, None))]
    assert len(best) == rows.trained and all(sample.ids[-1] == 1 for sample in best)
    assert result.metrics["reward"] == pytest.approx(sum(s.reward for s in best) / len(best))
    assert result.metrics["kept_rate"] == pytest.approx(rows.trained / 24)
    assert result.details["samples"] == 192


def test_a_later_attempt_samples_and_scores_nothing_again(
    prepared: Artifact, tmp_path: Path
) -> None:
    reward, asked = tmp_path / "counted.py", tmp_path / "asked"
    reward.write_text(
        "def score(prompts, responses, targets):\n"
        f"    open({str(asked)!r}, 'a').write('x')\n"
        "    return [-len(response) for response in responses]\n"
    )
    spec = make_spec(prepared, tmp_path, "rft", rewards=[f"{reward}:score"], **SETTINGS)
    first = run_stage(spec)
    file = work_of(spec) / SAMPLES_FILE
    drawn = file.read_bytes()
    assert run_stage(spec, attempt=2).metrics["reward"] == first.metrics["reward"]
    assert asked.read_text() == "x"
    file.write_bytes(drawn[:-40])  # torn: drawn again, and the same
    run_stage(spec, attempt=3)
    assert asked.read_text() == "xx" and file.read_bytes() == drawn


def test_weights_of_rewards_are_added_up(prepared: Artifact, tmp_path: Path, short: str) -> None:
    one = [[{"source": short, "weight": weight}] for weight in (1.0, -0.5)]
    specs = [make_spec(prepared, tmp_path, "rft", rewards=terms, **SETTINGS) for terms in one]
    for spec in specs:
        run_stage(spec)
    ours, theirs = (read_certified(work_of(spec) / SAMPLES_FILE) for spec in specs)
    for group, other in zip(ours, theirs, strict=True):
        assert [(ids, ended, -0.5 * reward) for ids, ended, reward in group] == [
            (ids, ended, reward) for ids, ended, reward in other
        ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"min_reward": 0.0},
            r"above rft.min_reward 0.0; the best of \d+ that ended is worth -\d+.0",
        ),
        ({"max_new_tokens": 1, "num_generations": 1}, "the best of 0 that ended is worth None"),
    ],
)
def test_where_nothing_is_good_enough_it_says_what_was_there(
    prepared: Artifact, tmp_path: Path, short: str, settings: dict[str, Any], message: str
) -> None:
    spec = make_spec(prepared, tmp_path, "rft", rewards=[short], **{**SETTINGS, **settings})
    with pytest.raises(DataError, match=message):
        run_stage(spec)
    assert json.loads((work_of(spec) / SAMPLES_FILE).read_text())["rows"]


def test_only_the_whole_of_a_certified_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    assert read_certified(path) is None
    write_certified(path, [[1, 2.5]])
    assert read_certified(path) == [[1, 2.5]]
    path.write_text(path.read_text().replace("2.5", "2.6"))
    assert read_certified(path) is None
