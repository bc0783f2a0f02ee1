"""Stage `reward`: a reward model, an adapter and a scalar head on the frozen base; TRL's trainer.

    L = -log sigmoid(r(chosen) - r(rejected)) + c * (r(chosen) + r(rejected))^2

Bradley-Terry, as in Ouyang et al. 2022, arXiv:2203.02155, eq. 1, with the centering term of Eisenstein
et al. 2023, arXiv:2312.09244. The adapter starts from the SFT adapter's weights, so that it reads the
responses the policy writes; it stays an adapter of the one base that all stages share. Left out:
rankings of more than two responses, and margins given with the pairs.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from alignflow.models import (
    HEADS,
    check_adapter,
    fit_vocabulary,
    load_scorer,
    new_adapter,
    put_adapter,
    quiet,
)
from alignflow.recipe import RewardSection
from alignflow.stages import ADAPTER_PREFIX, ADAPTER_WEIGHTS
from alignflow.training.engine import OnPairs, Row, RowMeansTrainer, sft_source


class Trainer(RowMeansTrainer, RewardTrainer):
    """TRL's, on pairs that are token ids already."""


class Reward(OnPairs[RewardSection]):
    """Learns to score the chosen response of a pair higher."""

    section, configuration, trainer = RewardSection, RewardConfig, Trainer
    passed = ("center_rewards_coefficient",)
    logged: ClassVar = {"loss": "loss", "train_accuracy": "accuracy"}

    @cached_property
    def model(self) -> Any:
        """A scorer that starts from the SFT stage's weights; its head is drawn."""
        job = self.job
        adapter, sft_model = sft_source(job)
        model = load_scorer(
            job.base, sft_model, dtype=job.weights_dtype, quantization=job.quantization
        )
        model.config.pad_token_id = job.tokenizer.pad_token_id
        if job.tuning.mode == "full":
            return model
        if adapter is None:
            return new_adapter(model, job.tuning, "SEQ_CLS")
        check_adapter(adapter, job.base)
        replaces = fit_vocabulary(model, adapter)
        model = new_adapter(model, job.tuning, "SEQ_CLS", like=adapter)
        model.replaces_embeddings = replaces
        weights = load_file(str(adapter / ADAPTER_WEIGHTS))
        with quiet():
            own = get_peft_model_state_dict(model, save_embedding_layers=False)
        drawn = {key: tensor for key, tensor in own.items() if key.endswith("score.weight")}
        read = {key: tensor for key, tensor in weights.items() if not of_head(key)}
        put_adapter(model, {**drawn, **read}, adapter)
        return model

    def features(self, row: Row) -> dict[str, Any]:
        """Whole sequences: TRL's reward trainer takes prompt and response in one."""
        return {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")}

    def score(self, trainer: Any, batch: dict[str, Tensor]) -> Tensor:
        chosen, rejected = trainer.model(**batch).logits.squeeze(-1).float().chunk(2)
        return chosen - rejected


run = Reward.run


def of_head(key: str) -> bool:
    """Whether a tensor of an adapter belongs to a language model's head, which a scorer has not."""
    return key.removeprefix(ADAPTER_PREFIX).partition(".")[0] in HEADS
