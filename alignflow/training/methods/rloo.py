"""Stage `rloo`: REINFORCE, leave one out (Ahmadian et al. 2024, arXiv:2402.14740); TRL's trainer.

    gradient of  mean over k responses of (R_i - mean of the other R_j) * log p(y_i)
    R(y) = reward(y) - beta * log p(y)/q(y)

Section 2 of the paper, with q the policy's start. Left out: several updates from one batch of samples.
"""

from __future__ import annotations

from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from alignflow.recipe import RLOOSection
from alignflow.training.rl import OnlineTrainer, Rewarded


class Trainer(OnlineTrainer, RLOOTrainer):
    """TRL's, on our prompts."""


class RLOO(Rewarded[RLOOSection]):
    """The other responses to a prompt are the baseline of each."""

    section, configuration, trainer = RLOOSection, RLOOConfig, Trainer
    passed = ("beta",)


run = RLOO.run
