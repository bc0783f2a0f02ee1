"""Preference pairs in training: their rows, and the accuracy of a model on held-out ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from alignflow.data import StoredRows
from alignflow.evaluation import interval
from alignflow.stages import RowAccount
from alignflow.training.engine.fit import Measured, Method, scores
from alignflow.training.engine.job import AnySection, Job
from alignflow.training.engine.rows import Row, account, rows_within


def pair_rows(job: Job[Any], name: str) -> StoredRows:
    """Pairs of `train` or `held_out` that fit max_length; training pairs must not run out."""
    return rows_within(job, "preferences", name, _longest)


def _longest(rows: StoredRows) -> np.ndarray:
    sides = [rows.lengths("chosen_ids"), rows.lengths("rejected_ids")]
    return rows.lengths("prompt_ids") + np.maximum(*sides)


def longest(row: dict[str, Any]) -> int:
    """Tokens of a pair's longer side."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


class OnPairs(Method[AnySection]):
    """Learns from preference pairs, and is measured by how many held-out ones it ranks rightly."""

    @cached_property
    def rows(self) -> Sequence[Row]:
        return pair_rows(self.job, "train")

    @cached_property
    def held_out(self) -> Sequence[Row]:
        return pair_rows(self.job, "held_out")

    def length(self, row: Row) -> int:
        return longest(row)

    def margins(self, trainer: Any) -> list[float]:
        """How far the chosen response of each held-out pair is preferred; 0 is undecided."""
        return scores(self, trainer, self.held_out)

    def measure(self, trainer: Any, last: Mapping[str, float]) -> Measured:
        prompts = [row["prompt"] for row in self.held_out]
        return Measured(*agreement(self.margins(trainer), prompts, self.job.spec.seed))

    def account(self) -> RowAccount:
        return account(self.job, "preferences", trained=len(self.rows), held_out=len(self.held_out))


def labelled_logps(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Log-probability of each token after the first, 0 where its label is -100, [B, T - 1]."""
    ids, attention = batch["input_ids"], batch["attention_mask"]
    return model(
        input_ids=ids, attention_mask=attention, labels=labels, use_cache=False, fused_lm_head=True
    ).log_probs


def response_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Log-probability of each response of a batch whose `completion_mask` marks them, [B]."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return labelled_logps(model, batch, labels).sum(dim=1).float()


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
    bounds = clustered_interval(right, prompts, seed)
    return (
        {"preference_accuracy": float(right.mean()), "margin": float(values.mean())},
        {"held_out_pairs": len(margins), "preference_accuracy_interval": bounds},
    )


def clustered_interval(values: np.ndarray, clusters: list[str], seed: int) -> list[float]:
    """95 % percentile bootstrap interval of the mean, whole clusters drawn."""
    order = sorted(range(len(clusters)), key=clusters.__getitem__)
    together = [clusters[place] for place in order]
    return list(interval(values[order], clusters=together, seed=seed, bounds=(0.025, 0.975)))
