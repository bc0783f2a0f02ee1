"""Supervised training on rows of token ids, for every method that learns given responses."""

from __future__ import annotations

from typing import Any, ClassVar

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from alignflow.training.engine.fit import Method
from alignflow.training.engine.job import AnySection
from alignflow.training.engine.trainer import ThinTrainer


class SupervisedTrainer(ThinTrainer, SFTTrainer):
    """TRL's, on rows that are token ids already."""


class Supervised(Method[AnySection]):
    """Learns rows of `input_ids`, only the tokens that their `completion_mask` counts."""

    configuration = SFTConfig
    trainer = SupervisedTrainer
    logged: ClassVar = {"loss": "loss", "token_accuracy": "mean_token_accuracy"}

    def arguments(self) -> dict[str, Any]:
        return {"dataset_kwargs": {"skip_prepare_dataset": True}}

    def features(self, row: Any) -> dict[str, Any]:
        """Token ids, with labels of -100 where there is no loss."""
        counted = zip(row["input_ids"], row["completion_mask"], strict=True)
        labels = [token if counts else -100 for token, counts in counted]
        return {"input_ids": row["input_ids"], "labels": labels}
