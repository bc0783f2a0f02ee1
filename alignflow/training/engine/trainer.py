"""The thin layer over TRL's trainers: what is the same for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer

from alignflow.training.engine.callbacks import not_finite
from alignflow.training.engine.order import LengthPooled


class QuietTrainer(Trainer):
    """Mixed in before a TRL trainer: no telemetry, no model card, a finite loss."""

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
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
