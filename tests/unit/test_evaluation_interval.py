"""Intervals: by hand where that is possible, against a plain loop, and by their coverage."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from alignflow.evaluation.measure import Outcome, intervals
from alignflow.evaluation.statistics import interval, wilson


def test_equal_values_leave_no_doubt() -> None:
    assert interval([1.0] * 20, resamples=200) == (1.0, 1.0)


def test_two_rows_give_every_mean_of_two_draws() -> None:
    # Means of two draws from {0, 1}: 0 with 1/4, 1/2 with 1/2, 1 with 1/4, so 2.5 % is 0 and 97.5 % is 1.
    assert interval([0.0, 1.0], resamples=1000) == (0.0, 1.0)


def test_it_agrees_with_a_plain_loop() -> None:
    rng = random.Random(5)
    values = [rng.random() for _ in range(60)]
    means = sorted(sum(rng.choices(values, k=60)) / 60 for _ in range(20_000))
    low, high = interval(values, resamples=20_000, seed=1)
    assert low == pytest.approx(means[500], abs=0.004)
    assert high == pytest.approx(means[19_500], abs=0.004)


def test_the_same_seed_gives_the_same_interval_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = list(np.random.default_rng(0).random(50))
    whole = interval(values, seed=3)
    assert interval(values, seed=3) == whole
    assert interval(values, seed=4) != whole
    monkeypatch.setattr("alignflow.evaluation.statistics.DRAWS_AT_ONCE", 1000)
    assert interval(values, seed=3) == whole


def test_rows_of_one_prompt_are_drawn_together() -> None:
    # Ten answers to each of two prompts, all alike within a prompt: two facts, not twenty.
    values = [0.0] * 10 + [1.0] * 10
    assert interval(values, clusters=["a"] * 10 + ["b"] * 10) == (0.0, 1.0)
    low, high = interval(values)
    assert 0.2 < low < high < 0.8


def test_a_perplexity_is_a_ratio_of_sums_and_then_exp() -> None:
    losses, tokens = [2.0, 8.0], [2.0, 4.0]
    low, high = interval(losses, weights=tokens, transform=np.exp)
    assert (low, high) == (pytest.approx(math.exp(1.0)), pytest.approx(math.exp(2.0)))


def test_95_percent_of_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(300):
        low, high = interval(list(rng.random(80) < 0.4), resamples=400, seed=trial)
        hits += low <= 0.4 <= high
    assert 0.90 <= hits / 300 <= 0.99


def test_no_values_is_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="no values"):
        interval([])


@pytest.mark.parametrize("right", [0, 1, 7, 100, 199, 200])
def test_wilsons_interval_is_scipys(right: int) -> None:
    from scipy.stats import binomtest

    theirs = binomtest(right, 200).proportion_ci(0.95, method="wilson")
    assert wilson(right, 200) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilsons_interval_by_hand_leaves_doubt_at_none_and_at_all() -> None:
    # 0 of 10: high = z^2 / (n + z^2) = 3.8415 / 13.8415
    assert wilson(0, 10) == (0.0, pytest.approx(0.27753, abs=1e-5))
    assert wilson(10, 10) == (pytest.approx(0.72247, abs=1e-5), 1.0)


def outcome(values: list[float], **other: object) -> Outcome:
    return Outcome.model_validate({"values": values, "clusters": list(range(len(values))), **other})


def test_answers_that_are_right_or_wrong_once_per_prompt_get_wilsons_and_others_the_bootstraps() -> (
    None
):
    right, several, graded = [1.0] * 10, [0.0, 1.0] * 10, [0.5, 1.0] * 10
    twice = [place // 2 for place in range(20)]
    found = intervals(
        {
            "right": outcome(right),
            "clustered": outcome(several, clusters=twice),
            "graded": outcome(graded),
            "perplexity": outcome([1.0] * 4, weights=[1.0] * 4, exponential=True),
        },
        resamples=300,
        seed=0,
    )
    assert found["right"] == list(wilson(10, 10))
    assert found["clustered"] == list(interval(several, clusters=twice, resamples=300))
    assert found["graded"] == list(interval(graded, resamples=300))
    assert found["perplexity"] == pytest.approx([math.e, math.e])
