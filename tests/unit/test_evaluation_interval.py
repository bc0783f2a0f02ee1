"""Intervals: by hand where that is possible, against a plain loop, and by their coverage."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from alignflow.evaluation.statistics import interval


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
