"""Stage `grpo`: group relative policy optimization (Shao et al. 2024, arXiv:2402.03300); TRL's trainer.

    L = -mean over tokens of (p/p_old * A) + beta * KL(p || q),  A_i = (R_i - mean R) / std R

Equations 3 and 4 of the paper, the mean and deviation those of a prompt's responses, with q the
policy's start. How tokens are averaged and what divides A is the recipe's. Left out: several updates
from one batch of samples, so that p/p_old is 1 and its clip never acts; rewards of single steps.
"""

from __future__ import annotations

from typing import Any

from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from alignflow.recipe import GRPOSection
from alignflow.training.rl import OnlineTrainer, Rewarded


class Trainer(OnlineTrainer, GRPOTrainer):
    """TRL's, on our prompts."""


class GRPO(Rewarded[GRPOSection]):
    """Responses to a prompt are compared with their own mean."""

    section, configuration, trainer = GRPOSection, GRPOConfig, Trainer
    passed = ("beta", "scale_rewards")

    def arguments(self) -> dict[str, Any]:
        """TRL's bnpo counts a micro-batch's tokens; over those of the update it is dapo."""
        loss = self.job.section.loss_type
        return {**super().arguments(), "loss_type": "dapo" if loss == "bnpo" else loss}


run = GRPO.run
