"""Preference pairs in training: their rows, and the accuracy of a model on held-out ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alignflow.evaluation.statistics import interval
from alignflow.models.adapters import new_adapter
from alignflow.models.loading import load_adapter, load_base, load_policy
from alignflow.training.engine.common import Job, read_rows, within

RESAMPLES = 2000


def pair_rows(job: Job[Any], name: str) -> list[dict[str, Any]]:
    """Pairs of `train` or `held_out` that fit max_length; training pairs must not run out."""
    rows = read_rows(job.spec.input("data") / "preferences" / f"{name}.parquet")
    return split_within(name, rows, [longest(row) for row in rows], job.section.max_length)


def split_within(
    name: str, rows: list[dict[str, Any]], lengths: list[int], limit: int
) -> list[dict[str, Any]]:
    """Rows of `train` or `held_out` of at most `limit` tokens; those of `train` must not run out."""
    if name == "train":
        return within(rows, lengths, limit)
    return [row for row, length in zip(rows, lengths, strict=True) if length <= limit]


def longest(row: dict[str, Any]) -> int:
    """Tokens of a pair's longer side."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def by_length(lengths: list[int], size: int) -> Iterator[list[int]]:
    """Positions of rows in chunks of `size`, shortest first, so that chunks need little padding."""
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def agreement(
    margins: list[float], prompts: list[str], seed: int
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Share of pairs whose chosen response is scored higher (ties count half), and its interval.

    The 95 % interval is a bootstrap over prompts, since pairs of one prompt are not independent.
    """
    if not margins:
        return {"preference_accuracy": None, "margin": None}, {"held_out_pairs": 0}
    values = np.asarray(margins)
    right = np.where(values > 0, 1.0, np.where(values == 0, 0.5, 0.0))
    return (
        {"preference_accuracy": float(right.mean()), "margin": float(values.mean())},
        {
            "held_out_pairs": len(margins),
            "preference_accuracy_interval": clustered_interval(right, prompts, seed),
        },
    )


def clustered_interval(values: np.ndarray, clusters: list[str], seed: int) -> list[float]:
    """95 % percentile bootstrap interval of the mean, whole clusters drawn."""
    order = sorted(range(len(clusters)), key=clusters.__getitem__)
    low, high = interval(
        values[order],
        clusters=[clusters[place] for place in order],
        resamples=RESAMPLES,
        seed=seed,
        bounds=(0.025, 0.975),
    )
    return [low, high]


def sft_source(job: Job[Any]) -> tuple[Path | None, Path | None]:
    """(adapter directory, model directory) that a stage after SFT starts from."""
    if job.sft is not None:
        adapter, model = job.sft / "adapter", job.sft / "model"
        return (adapter, None) if adapter.is_dir() else (None, model)
    if job.tuning.init_adapter and job.tuning.mode != "full":
        return Path(job.tuning.init_adapter), None
    return None, None


def starting_policy(job: Job[Any]) -> Any:
    """What an alignment stage trains on: the SFT stage's result, or the base with a new adapter."""
    adapter, sft_model = sft_source(job)
    if sft_model is not None:
        return load_policy(job.base, job.sft, dtype=job.weights_dtype, quantization=None)
    model = load_base(job.base, dtype=job.weights_dtype, quantization=job.quantization)
    if job.tuning.mode == "full":
        return model
    if adapter is not None:
        return load_adapter(model, adapter, job.base, trainable=True)
    return new_adapter(model, job.tuning, "CAUSAL_LM")
