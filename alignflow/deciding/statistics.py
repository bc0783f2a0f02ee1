"""Whether one arm is better than another: paired, one-sided, over questions and seeds. Numpy only.

An arm's values are a matrix, [seeds, questions]; an arm without weights of its own has one row. Two
such arms are compared by an exact sign test where values are right or wrong, else by flipping the
signs of their differences. Where an arm was trained, its seeds are a sample too: the variance of the
mean over questions and that of the mean over seeds are added, and the critical value lies between
those of their t distributions (Cochran and Cox), since three seeds alone would look surer than they
are. Satterthwaite's degrees of freedom claim too much where seeds vary by 15 points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from alignflow.evaluation import sign_test

FLIPS = 9_999
DRAWS_AT_ONCE = 2_000_000
LOG_TAILS = np.linspace(math.log(0.5), math.log(1e-12), 600)
Values = np.ndarray
"""[seeds, questions]."""


class Comparison(NamedTuple):
    """One arm against another."""

    difference: float
    """Of their means."""
    p_value: float
    """Chance of this difference or more if the first were not better."""
    spread: float
    """Standard deviation of the paired difference of one question, seeds averaged."""
    seed_variance: float
    """That part of the difference's variance which more questions do not lessen."""


def compared(first: Values, second: Values, *, seed: int = 0) -> Comparison:
    """One-sided paired test that the first arm is better than the second.

    Args:
        first: Values of one arm on questions, in the same order as the other's.
        second: Of the other arm.
        seed: Of the flips.
    """
    differences = first.mean(axis=0) - second.mean(axis=0)
    mean, count = float(differences.mean()), differences.size
    spread = float(differences.std(ddof=1)) if count > 1 else 0.0
    parts = [
        (float(arm.mean(axis=1).var(ddof=1)) / len(arm), len(arm) - 1)
        for arm in (first, second)
        if len(arm) > 1
    ]
    of_seeds = sum(variance for variance, _ in parts)
    if parts:
        p_value = _mixed_test(mean, [(spread**2 / count, count - 1), *parts])
    else:
        p_value = _paired_test(differences, seed)
    return Comparison(mean, p_value, spread, of_seeds)


def _paired_test(differences: np.ndarray, seed: int) -> float:
    """Exact for right and wrong answers, by flips of the signs of graded ones."""
    told = differences[differences != 0]
    if not told.size:
        return 1.0
    if float(np.ptp(np.abs(told))) == 0.0:
        return sign_test(int((told > 0).sum()), int((told < 0).sum())).p_value
    draws = np.random.default_rng(seed)
    reached, done = 0, 0
    observed = float(told.sum()) - 1e-9
    while done < FLIPS:
        size = min(FLIPS - done, max(1, DRAWS_AT_ONCE // told.size))
        signs = draws.integers(0, 2, size=(size, told.size)) * 2 - 1
        reached += int(((signs * told).sum(axis=1) >= observed).sum())
        done += size
    return (reached + 1) / (FLIPS + 1)


def _mixed_test(mean: float, parts: list[tuple[float, int]]) -> float:
    """Upper tail for a mean whose variance is a sum of estimates, each with its degrees of freedom.

    The critical value at a level is the mean of those of each t distribution, weighted by the
    variances (Cochran and Cox 1950): three seeds count as three, however many questions there are.
    """
    parts = [(variance, degrees) for variance, degrees in parts if variance > 0.0 and degrees > 0]
    variance = sum(part for part, _ in parts)
    if not parts:
        return 0.0 if mean > 0 else 1.0
    value = mean / math.sqrt(variance)
    if len(parts) == 1:
        return t_tail(value, parts[0][1])
    critical = sum(part * _quantiles(degrees) for part, degrees in parts) / variance
    tail = float(np.exp(np.interp(abs(value), critical, LOG_TAILS)))
    return tail if value >= 0 else 1.0 - tail


@lru_cache(maxsize=256)
def _quantiles(degrees: int) -> np.ndarray:
    """Student's t at each of `LOG_TAILS`."""
    steps = np.linspace(0.0, math.asinh(1e12), 1500)
    tails = np.log([max(t_tail(math.sinh(step), degrees), 1e-300) for step in steps])
    return np.sinh(np.interp(-LOG_TAILS, -tails, steps))


def t_tail(value: float, degrees: float) -> float:
    """P(T >= value) of Student's t, by its regularised incomplete beta function."""
    tail = 0.5 * _incomplete_beta(degrees / 2.0, 0.5, degrees / (degrees + value * value))
    return tail if value >= 0 else 1.0 - tail


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised, by Lentz's continued fraction (Numerical Recipes 6.4)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(front + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(400):
        half = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = half * (b - half) * x / ((a + 2.0 * half - 1.0) * (a + 2.0 * half))
        else:
            term = -(a + half) * (a + b + half) * x / ((a + 2.0 * half) * (a + 2.0 * half + 1.0))
        d = 1.0 + term * d
        d = 1.0 / (d if abs(d) > tiny else tiny)
        c = 1.0 + term / c
        c = c if abs(c) > tiny else tiny
        fraction *= c * d
        if abs(1.0 - c * d) < 1e-12:
            break
    return front * (fraction - 1.0)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values (Holm 1979).

    Rejecting those below a level has at most its chance of a single mistake, whatever is true.
    """
    adjusted, highest, left = {}, 0.0, len(p_values)
    for name in sorted(p_values, key=lambda name: p_values[name]):
        highest = max(highest, min(1.0, left * p_values[name]))
        adjusted[name] = highest
        left -= 1
    return {name: adjusted[name] for name in p_values}


def interval(
    values: Values, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of an arm's mean: questions drawn anew, and with them seeds.

    Of few seeds a draw shows too little spread; their means are stretched by sqrt(n / (n - 1)).
    """
    draws = np.random.default_rng(seed)
    seeds, questions = values.shape
    centre = values.mean(axis=0)
    stretch = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
    of_seeds = (values.mean(axis=1) - values.mean()) * stretch
    means = np.empty(resamples)
    rows = max(1, DRAWS_AT_ONCE // questions)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = centre[draws.integers(questions, size=(size, questions))].mean(axis=1)
        luck = of_seeds[draws.integers(seeds, size=(size, seeds))].mean(axis=1)
        means[start : start + size] = drawn + luck
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def questions_needed(
    comparison: Comparison, effect: float, alpha: float, power: float
) -> int | None:
    """Questions on which a true difference of `effect` would be found.

    None where seeds' luck alone hides it, so that no number of questions would do.

    Args:
        comparison: Whose spread is expected again.
        effect: Difference of the means.
        alpha: Level of the one test.
        power: Chance of finding it.
    """
    normal = NormalDist()
    room = (effect / (normal.inv_cdf(1.0 - alpha) + normal.inv_cdf(power))) ** 2
    room -= comparison.seed_variance
    if room <= 0.0:
        return None
    return max(1, math.ceil(comparison.spread**2 / room))


def detectable(comparison: Comparison, questions: int, alpha: float, power: float) -> float:
    """The true difference that so many questions would find with that chance."""
    normal = NormalDist()
    variance = comparison.spread**2 / max(questions, 1) + comparison.seed_variance
    return (normal.inv_cdf(1.0 - alpha) + normal.inv_cdf(power)) * math.sqrt(variance)
