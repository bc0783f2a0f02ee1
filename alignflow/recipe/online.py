"""The sections of RLOO and GRPO, which learn from rewards of sampled responses without a critic."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from alignflow.recipe.rewards import REWARD_MODEL, RewardTerm
from alignflow.recipe.training import TrainingSection


class OnlineSection(TrainingSection):
    """What RLOO and GRPO share. `batch_size` counts rollouts; every batch is sampled anew."""

    rewards: list[RewardTerm] = Field(
        default_factory=lambda: [RewardTerm(source=REWARD_MODEL)], min_length=1
    )
    """What is maximized: the sum of scores times weights, which is not standardized here: each group
    is by its own mean."""

    learning_rate: float = Field(default=1e-5, gt=0, lt=1)
    """Peak rate of AdamW."""

    batch_size: int = Field(default=64, ge=2)
    """Rollouts per update, num_generations for each prompt."""

    num_generations: int = Field(default=4, ge=2)
    """Responses to a prompt, which are compared with one another; divides batch_size."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest response, in tokens."""

    temperature: float = Field(default=1.0, gt=0)
    """Of the rollouts."""

    min_reward_accuracy: float = Field(default=0.55, ge=0, le=1)
    """Held-out accuracy that the reward model must reach, its 95 % lower bound above 0.5."""

    logging_steps: int = Field(default=1, ge=1)
    """Updates between two logged metrics."""

    save_steps: int = Field(default=5, ge=1)
    """Updates between two certified checkpoints."""

    @property
    def uses_reward_model(self) -> bool:
        """Whether the reward model is among the rewards."""
        return any(term.source == REWARD_MODEL for term in self.rewards)

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self.batch_size % self.num_generations:
            raise ValueError(
                f"batch_size is {self.batch_size} rollouts, which num_generations "
                f"{self.num_generations} does not divide; change one"
            )
        return self


class RLOOSection(OnlineSection):
    """REINFORCE with the other responses to a prompt as the baseline of each (leave one out)."""

    beta: float = Field(default=0.05, ge=0)
    """Weight of the KL to the reference in the reward."""


class GRPOSection(OnlineSection):
    """Group relative policy optimization: rewards are compared within the responses to a prompt."""

    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference in the loss; at 0 there is no reference."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What an advantage is divided by: the deviation in its group, in the batch, or nothing."""

    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"
    """How the loss is averaged over tokens (TRL's names)."""
