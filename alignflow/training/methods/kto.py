"""Stage `kto`: Kahneman-Tversky optimization of single responses (Ethayarajh et al. 2024); TRL's trainer.

    L = w(liked) * (1 - sigmoid(r - z))  or  w(disliked) * (1 - sigmoid(z - r))
    r = beta * log p(response)/q(response),  z = beta * KL(p || q)

Equations 7 and 8 of arXiv:2402.01306. The reference q is what the policy starts from. The KL term
needs responses to other prompts: they are those of the micro-batch, each moved on by one, as in the
paper, so the micro-batch is part of the result. Left out: an order of rows that balances the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from torch import Tensor
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

from alignflow.data import View
from alignflow.models import quiet
from alignflow.recipe import KTOSection
from alignflow.stages import RowAccount
from alignflow.training.engine import (
    Measured,
    Method,
    Row,
    RowMeansTrainer,
    account,
    pair_rows,
    response_logps,
    rows_within,
    scores,
    starting_policy,
)

SIDES = (("chosen_ids", True), ("rejected_ids", False))
"""Of a pair, and whether somebody would have liked it."""


class Collator(DataCollatorForUnpairedPreference):
    """TRL's, with the responses of the batch moved on by one for the KL term."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        before = [examples[-1], *examples[:-1]]
        moved = [
            {**example, "KL_completion_ids": other["completion_ids"]}
            for example, other in zip(examples, before, strict=True)
        ]
        return super().torch_call(moved)


class Trainer(RowMeansTrainer, KTOTrainer):
    """TRL's, on responses that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class KTO(Method[KTOSection]):
    """Raises liked and lowers disliked responses, relative to the reference."""

    section, configuration, trainer = KTOSection, KTOConfig, Trainer
    passed = ("beta", "loss_type", "desirable_weight", "undesirable_weight")
    logged: ClassVar = {"loss": "loss", "kl": "kl"}

    @cached_property
    def rated(self) -> bool:
        """Whether responses are those of data.ratings, or else of the preference pairs."""
        return self.job.data.rows("ratings").is_dir()

    @cached_property
    def rows(self) -> Sequence[Row]:
        return self._responses("train")

    @cached_property
    def held_out(self) -> Sequence[Row]:
        return self._responses("held_out")

    def _responses(self, name: str) -> Sequence[Row]:
        if self.rated:
            return rows_within(
                self.job,
                "ratings",
                name,
                lambda rows: rows.lengths("prompt_ids") + rows.lengths("completion_ids"),
            )
        pairs = pair_rows(self.job, name)
        return View(len(SIDES) * len(pairs), lambda at: _side(pairs, at))

    def features(self, row: Row) -> dict[str, Any]:
        return {name: row[name] for name in ("prompt_ids", "completion_ids", "label")}

    def length(self, row: Row) -> int:
        return len(row["prompt_ids"]) + len(row["completion_ids"])

    def options(self) -> dict[str, Any]:
        """The reference, where it is no adapter of the policy, and the collator."""
        return {
            "ref_model": starting_policy(self.job) if self.job.tuning.mode == "full" else None,
            "data_collator": Collator(self.job.tokenizer.pad_token_id),
        }

    def prepare(self, trainer: Any) -> dict[str, Any]:
        return {"liked": sum(row["label"] for row in self.rows)}

    def score(self, trainer: Any, batch: dict[str, Tensor]) -> Tensor:
        """Rewards: beta times the log-ratio of each response to the reference."""
        model = trainer.model
        reference = trainer.ref_model if trainer.ref_model is not None else model
        with quiet():
            before, _ = trainer.compute_ref_log_probs(reference, batch)
        return trainer.beta * (response_logps(model, batch) - before)

    def measure(self, trainer: Any, last: Mapping[str, float]) -> Measured:
        """How well rewards rank the held-out responses."""
        labels = [row["label"] for row in self.held_out]
        auc = ranking_auc(scores(self, trainer, self.held_out), labels)
        return Measured({"rating_auc": auc}, {"held_out_responses": len(labels)})

    def account(self) -> RowAccount:
        """Of ratings, or of pairs, which are two responses each."""
        part, sides = ("ratings", 1) if self.rated else ("preferences", 2)
        trained, held_out = len(self.rows) // sides, len(self.held_out) // sides
        return account(self.job, part, trained=trained, held_out=held_out)


run = KTO.run


def _side(pairs: Sequence[Row], at: int) -> Row:
    """One of the two responses of a pair, as somebody would have rated it."""
    pair, (side, liked) = pairs[at // len(SIDES)], SIDES[at % len(SIDES)]
    return {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[side], "label": liked}


def ranking_auc(rewards: list[float], liked: list[bool]) -> float | None:
    """Share of pairs of a liked and a disliked response that the rewards rank rightly; ties half.

    None where one kind is missing. Rewards 3, 1 liked and 2 disliked: one of two pairs, 0.5.
    """
    values, labels = np.asarray(rewards), np.asarray(liked, dtype=bool)
    good, bad = values[labels], np.sort(values[~labels])
    if not len(good) or not len(bad):
        return None
    below, up_to = np.searchsorted(bad, good, "left"), np.searchsorted(bad, good, "right")
    return float((below + up_to).sum() / (2 * len(good) * len(bad)))
