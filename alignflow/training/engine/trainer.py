"""The thin layer over TRL's trainers: a finite loss, and rows in an order of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer

from alignflow.training.engine.callbacks import not_finite

POOL = 8
"""Updates whose rows are pooled and sorted by length, so that rows of a batch need little padding."""


class LengthPooled(Sampler[int]):
    """Shuffled rows; within a pool of updates sorted by length, the updates shuffled again."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of one pass; the Trainer calls it, after a resume too."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(pooled_order(self._lengths, self._batch_size, self._seed, self._epoch))


def pooled_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the rows. The last update of a pass may be short, no other is."""
    random = Random(f"{seed}:{epoch}")
    rows = list(range(len(lengths)))
    random.shuffle(rows)
    pool = batch_size * POOL
    pooled = [
        row
        for start in range(0, len(rows), pool)
        for row in sorted(rows[start : start + pool], key=lambda row: (-lengths[row], row))
    ]
    whole = [pooled[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    short = whole.pop() if len(rows) % batch_size else []
    random.shuffle(whole)
    return [row for batch in [*whole, short] for row in batch]


class QuietTrainer(Trainer):
    """Mixed in before a TRL trainer: no telemetry, no model card, a finite loss."""

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        loss = super().training_step(*arguments, **options)
        if not bool(torch.isfinite(loss)):
            raise not_finite("loss", self.state.global_step + 1)
        return loss

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """The report says more."""

    def _send_telemetry(self) -> None:
        """Nothing leaves this machine."""


class ThinTrainer(QuietTrainer):
    """Mixed in before a TRL trainer: our row order too."""

    lengths: list[int]
    """Length of each training row, in tokens."""

    effective_batch_size: int

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return LengthPooled(self.lengths, self.effective_batch_size, self.args.seed)


class RowMeansTrainer(ThinTrainer):
    """Mixed in before a TRL trainer whose loss is a mean over the rows of a micro-batch.

    Each micro-batch weighs as many rows as it has of its update's, so that the mean is over these,
    however they are cut; a mean of means is not, where the last micro-batch is short.
    """

    loss_is_scaled_for_ga = True

    def counts(self, batch: dict[str, Any]) -> list[int | Tensor]:
        """What means over a micro-batch are over, rows first."""
        return [len(batch["input_ids"])]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The counts of a whole update, over all devices."""
        each = [torch.tensor(self.counts(batch), device=device) for batch in batch_samples]
        return self.accelerator.reduce(sum(each), "sum") / self.accelerator.num_processes

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **given: Any) -> Any:
        """The micro-batch's part of the loss of its update."""
        rows = given["num_items_in_batch"][0]
        return super().compute_loss(model, inputs) * (len(inputs["input_ids"]) / rows)
