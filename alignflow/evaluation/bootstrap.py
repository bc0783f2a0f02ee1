"""95 % percentile intervals by the bootstrap, resampling whole prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

LEVEL = 0.95
CHUNK_DRAWS = 4_000_000
"""Indices drawn at once: bounds the memory."""


def interval(
    values: Sequence[float],
    *,
    clusters: Sequence[Any] | None = None,
    weights: Sequence[float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[float, float]:
    """Interval of sum(values) / sum(weights), a mean where no weights are given.

    Args:
        values: One number per row.
        clusters: Rows with the same entry (the same prompt) are drawn together.
        weights: Denominators, as tokens for a perplexity.
        resamples: Bootstrap samples.
        seed: Of the draws.
        transform: Applied to each resampled ratio, as exp for a perplexity.
    """
    if not len(values):
        raise ValueError("no values to take an interval of")
    sums, totals = _by_cluster(values, weights, clusters)
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_DRAWS // len(sums))
    ratios = []
    for start in range(0, resamples, chunk):
        drawn = rng.integers(len(sums), size=(min(chunk, resamples - start), len(sums)))
        ratios.append(sums[drawn].sum(axis=1) / totals[drawn].sum(axis=1))
    figures = np.concatenate(ratios)
    if transform is not None:
        figures = transform(figures)
    low, high = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _by_cluster(
    values: Sequence[float], weights: Sequence[float] | None, clusters: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values and of weights of each cluster, in order of appearance."""
    numerators = np.asarray(values, dtype=np.float64)
    denominators = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    if clusters is None:
        return numerators, denominators
    place_of = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    places = np.array([place_of[cluster] for cluster in clusters])
    return np.bincount(places, numerators), np.bincount(places, denominators)
