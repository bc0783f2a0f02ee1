"""Intervals by the bootstrap or by Wilson, and the gate's exact tests and their power. Numpy only.

The unit is the prompt: several responses or pairs of one prompt are one observation. Every test is
one-sided, because the only question is whether the candidate is better.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from alignflow.stages import Record

LEVEL = 0.95
DRAWS_AT_ONCE = 4_000_000
"""Indices: bounds the memory."""
LARGEST_WIN_RATE = 1.0 - 1e-9


class SignTest(Record):
    """Wins against losses; ties say nothing about who is better and are left out."""

    wins: int
    losses: int
    ties: int
    p_value: float
    """Chance of this many wins or more if both were equal; exact."""

    @property
    def n(self) -> int:
        """Prompts."""
        return self.wins + self.losses + self.ties

    @property
    def effect(self) -> float:
        """Wins minus losses as a share of all prompts."""
        return (self.wins - self.losses) / self.n if self.n else 0.0


class Interval(Record):
    """A mean with a one-sided bound on either side, each at the same confidence."""

    mean: float
    low: float
    high: float
    n: int


@lru_cache(maxsize=65_536)
def binomial_tail(successes: int, trials: int, probability: float = 0.5) -> float:
    """P(X >= successes) for X ~ Binomial(trials, probability), exact to rounding."""
    if successes <= 0:
        return 1.0
    if successes > trials or probability <= 0.0:
        return 0.0
    counts = np.arange(successes, trials + 1)
    logs = (
        math.lgamma(trials + 1)
        - np.array([math.lgamma(k + 1) + math.lgamma(trials - k + 1) for k in counts])
        + counts * math.log(probability)
        + (trials - counts) * math.log1p(-probability)
    )
    largest = float(logs.max())
    return min(1.0, float(math.exp(largest) * np.exp(logs - largest).sum()))


def sign_test(wins: int, losses: int, ties: int = 0) -> SignTest:
    """Exact one-sided sign test that wins are likelier than losses."""
    p_value = binomial_tail(wins, wins + losses)
    return SignTest(wins=wins, losses=losses, ties=ties, p_value=p_value)


def mcnemar(candidate: Sequence[bool], champion: Sequence[bool]) -> SignTest:
    """Exact one-sided McNemar test on right and wrong answers to the same prompts."""
    pairs = list(zip(candidate, champion, strict=True))
    wins, losses = pairs.count((True, False)), pairs.count((False, True))
    return sign_test(wins, losses, len(pairs) - wins - losses)


def by_prompt(prompts: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Mean value of each prompt, in the order of first sight."""
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        groups.setdefault(prompt, []).append(float(value))
    return {prompt: sum(group) / len(group) for prompt, group in groups.items()}


def paired_differences(
    candidate: Mapping[str, float], champion: Mapping[str, float]
) -> list[float]:
    """Candidate minus champion on each prompt that both answered.

    Raises:
        ValueError: The two were not measured on the same prompts.
    """
    if set(candidate) != set(champion):
        unshared = sorted(set(candidate) ^ set(champion))
        raise ValueError(f"{len(unshared)} prompts were scored for one model only: {unshared[:1]}")
    return [candidate[prompt] - champion[prompt] for prompt in candidate]


def bootstrap(
    differences: Sequence[float], *, confidence: float, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """BCa bootstrap of the mean of one difference per prompt (`by_prompt` has averaged these).

    `confidence` is that of each one-sided bound: 0.95 is a 90 % interval.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        return Interval(mean=0.0, low=-math.inf, high=math.inf, n=0)
    mean = float(values.mean())
    if values.size == 1 or float(np.ptp(values)) == 0.0:
        return Interval(mean=mean, low=mean, high=mean, n=int(values.size))
    means = _resampled(values, np.ones(values.size), resamples, seed)
    low, high = (
        float(np.quantile(means, _bca_level(values, means, level)))
        for level in (1.0 - confidence, confidence)
    )
    return Interval(mean=mean, low=low, high=high, n=int(values.size))


def interval(
    values: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[Any] | None = None,
    weights: Sequence[float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    bounds: tuple[float, float] = ((1 - LEVEL) / 2, (1 + LEVEL) / 2),
) -> tuple[float, float]:
    """Percentile interval of sum(values) / sum(weights), a mean where no weights are given.

    Args:
        values: One number per row.
        clusters: Rows with the same entry (the same prompt) are drawn together.
        weights: Denominators, as tokens for a perplexity.
        resamples: Bootstrap samples.
        seed: Of the draws.
        transform: Applied to each resampled ratio, as exp for a perplexity.
        bounds: Quantiles; 95 % lie between those by default.
    """
    if not len(values):
        raise ValueError("no values to take an interval of")
    sums, totals = _by_cluster(values, weights, clusters)
    ratios = _resampled(sums, totals, resamples, seed)
    low, high = np.quantile(ratios if transform is None else transform(ratios), bounds)
    return float(low), float(high)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share of independent right-or-wrong answers (Wilson 1927, without correction).

    At 0 and at 100 % it still says how far the truth may be, where a bootstrap has nothing to draw.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == trials else middle + half


def _by_cluster(
    values: Sequence[float] | np.ndarray,
    weights: Sequence[float] | None,
    clusters: Sequence[Any] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values and of weights of each cluster, in order of appearance."""
    numerators = np.asarray(values, dtype=np.float64)
    denominators = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    if clusters is None:
        return numerators, denominators
    place_of = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    places = np.array([place_of[cluster] for cluster in clusters])
    return np.bincount(places, numerators), np.bincount(places, denominators)


def _resampled(sums: np.ndarray, totals: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """sum(sums) / sum(totals) of each bootstrap sample; how many are drawn at once changes none."""
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS_AT_ONCE // sums.size)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    draws = (generator.integers(sums.size, size=(size, sums.size)) for size in sizes)
    return np.concatenate([sums[draw].sum(axis=1) / totals[draw].sum(axis=1) for draw in draws])


def _bca_level(values: np.ndarray, means: np.ndarray, level: float) -> float:
    """Quantile to read for `level`, corrected for bias and skew (Efron 1987)."""
    normal = NormalDist()
    below = (np.sum(means < values.mean()) + 0.5 * np.sum(means == values.mean())) / means.size
    bias = normal.inv_cdf(float(np.clip(below, 1e-6, 1 - 1e-6)))
    centered = values - values.mean()
    spread = float(np.sum(centered**2)) ** 1.5
    acceleration = float(np.sum(centered**3)) / (6.0 * spread) if spread else 0.0
    shifted = bias + normal.inv_cdf(level)
    return normal.cdf(bias + shifted / (1.0 - acceleration * shifted))


@lru_cache(maxsize=4_096)
def wins_needed(trials: int, alpha: float) -> int | None:
    """Fewest wins of `trials` untied prompts that are significant; None if even all are not."""
    fewest = bisect_left(
        range(trials + 1), True, key=lambda wins: binomial_tail(wins, trials) <= alpha
    )
    return fewest if fewest <= trials else None


def sign_test_power(trials: int, win_rate: float, alpha: float) -> float:
    """Chance that the sign test on `trials` untied prompts finds a true `win_rate`."""
    needed = wins_needed(trials, alpha)
    return 0.0 if needed is None else binomial_tail(needed, trials, min(win_rate, LARGEST_WIN_RATE))


def smallest_detectable_win_rate(trials: int, alpha: float, power: float) -> float | None:
    """Smallest true win rate among untied prompts found with `power`; None if none is."""
    low, high = 0.5, LARGEST_WIN_RATE
    if sign_test_power(trials, high, alpha) < power:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        if sign_test_power(trials, middle, alpha) >= power:
            high = middle
        else:
            low = middle
    return high


def smallest_detectable_effect(
    prompts: int, alpha: float, power: float, discordance: float
) -> float | None:
    """Smallest true difference (wins minus losses, share of prompts) found with `power`.

    `discordance` is the share of prompts on which the two models differ, `alpha` the test's level.
    """
    rate = smallest_detectable_win_rate(round(prompts * discordance), alpha, power)
    return None if rate is None else discordance * (2.0 * rate - 1.0)


def prompts_needed(effect: float, alpha: float, power: float, discordance: float) -> int:
    """Fewest prompts on which a true difference of `effect` is found with `power`.

    The power of an exact test saws with the sample; this is the first size found by bisection. As
    above, but `discordance` must be at least `effect`.
    """
    rate = 0.5 + 0.5 * min(effect / discordance, 1.0)
    low, high = 1, 2
    while sign_test_power(high, rate, alpha) < power and high < 1_000_000:
        low, high = high, high * 2
    fewest = bisect_left(
        range(high), True, lo=low, key=lambda size: sign_test_power(size, rate, alpha) >= power
    )
    return math.ceil(fewest / discordance)
