"""The sections of a recipe that say how a stage trains, one per stage."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignflow.recipe.rewards import REWARD_MODEL, RewardTerm, WatchSection
from alignflow.recipe.section import Section

SMOOTHED_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")
"""TRL's losses of DPO that read `label_smoothing`; the others pass over it without a word."""


class TrainingSection(Section):
    """What every training stage has."""

    learning_rate: float = Field(gt=0, lt=1)
    """Peak rate of AdamW. For LoRA about ten times the rate of full tuning."""

    num_train_epochs: float = Field(default=1.0, gt=0, le=1000)
    """Passes over the rows."""

    max_steps: int | None = Field(default=None, ge=1)
    """Updates; None trains for num_train_epochs."""

    batch_size: int = Field(default=16, ge=1)
    """Rows (pairs, for preferences) per update, over all devices and accumulation."""

    max_length: int = Field(default=1024, ge=8)
    """Tokens, prompt plus response. Longer rows are dropped and counted, never cut."""

    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the updates over which the rate rises."""

    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup", "constant"] = "linear"
    """How the rate falls afterwards."""

    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """AdamW's decoupled weight decay."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """`adamw_8bit` keeps the moments in 8 bits (bitsandbytes), a quarter of the memory; `paged_` lets
    them move to the CPU's memory when the GPU's runs out."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""

    logging_steps: int = Field(default=5, ge=1)
    """Updates between two logged metrics."""

    save_steps: int = Field(default=200, ge=1)
    """Updates between two certified checkpoints."""

    trainer_args: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of TRL's configuration class of this stage; part of the stage key."""


class SFTSection(TrainingSection):
    """Supervised fine-tuning: the loss is on responses only."""

    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """Peak rate of AdamW."""


class RewardSection(TrainingSection):
    """Reward model: an adapter and a scalar head, Bradley-Terry loss on pairs."""

    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    """Peak rate of AdamW."""

    center_rewards_coefficient: float | None = Field(default=0.01, ge=0)
    """Weight of the penalty that keeps the mean reward near zero; None is off."""


class DPOSection(TrainingSection):
    """Direct preference optimization from the SFT model, which stays as the reference."""

    learning_rate: float = Field(default=2e-5, gt=0, lt=1)
    """Peak rate of AdamW."""

    beta: float = Field(default=0.1, gt=0, le=10)
    """Pull toward the reference, dimensionless. Lower drifts further."""

    loss_type: list[str] = Field(default_factory=lambda: ["sigmoid", "sft"], min_length=1)
    """TRL's loss names. The SFT term keeps the chosen response likely."""

    loss_weights: list[float] | None = None
    """One weight per loss; None is 1.0 for the first and 0.5 for an SFT term, else 1.0."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of labels assumed wrong, for losses robust, exo_pair, aot and aot_unpaired."""

    @field_validator("loss_type", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _a_weight_each(self) -> Self:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(self.loss_type)} "
                f"losses {self.loss_type}; give one per loss"
            )
        return self

    @model_validator(mode="after")
    def _smoothing_has_a_use(self) -> Self:
        if "exo_pair" in self.loss_type and self.label_smoothing == 0:
            raise ValueError(
                "loss_type exo_pair takes the logarithm of label_smoothing, which is 0; set it, to "
                "1e-3 as in the paper"
            )
        if self.label_smoothing and not set(self.loss_type) & set(SMOOTHED_LOSSES):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing:g}, which {self.loss_type} would ignore; "
                f"remove it, or use one of {', '.join(SMOOTHED_LOSSES)}"
            )
        return self

    @property
    def weights(self) -> list[float]:
        """Loss weights in force, one per loss."""
        if self.loss_weights is not None:
            return self.loss_weights
        return [
            0.5 if name == "sft" and len(self.loss_type) > 1 else 1.0 for name in self.loss_type
        ]


class PPOSection(TrainingSection):
    """Proximal policy optimization of rewards. `batch_size` counts rollouts."""

    rewards: list[RewardTerm] = Field(
        default_factory=lambda: [RewardTerm(source=REWARD_MODEL)], min_length=1
    )
    """What is maximized: sources and weights."""

    watch: WatchSection | None = None
    """A task metric watched on held-out prompts, so that rewards are not over-optimized."""

    learning_rate: float = Field(default=1e-5, gt=0, lt=1)
    """Peak rate of the policy's AdamW."""

    value_learning_rate: float | None = Field(default=None, gt=0, lt=1)
    """Peak rate of the value model's AdamW; None is learning_rate."""

    batch_size: int = Field(default=64, ge=2)
    """Rollouts per update."""

    value_model: Literal["separate", "policy"] = "separate"
    """`separate`: an adapter (with full tuning, a model) of its own; `policy`: only a head on the
    policy's hidden states, which saves a forward pass and ties the two together."""

    num_ppo_epochs: int = Field(default=2, ge=1)
    """Passes over each batch of rollouts."""

    num_mini_batches: int = Field(default=2, ge=1)
    """Optimizer steps per pass; divides batch_size."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest response, in tokens."""

    temperature: float = Field(default=1.0, gt=0)
    """Of the rollouts."""

    kl_coef: float = Field(default=0.05, ge=0)
    """Weight of the per-token KL to the reference."""

    kl_estimator: Literal["k1", "k3"] = "k1"
    """Estimator of that KL: k1 is the log-ratio, k3 is never negative."""

    target_kl: float | None = Field(default=None, gt=0)
    """Nats per response that kl_coef is adapted toward; None keeps kl_coef fixed."""

    kl_horizon: float = Field(default=10_000, gt=0)
    """Rollouts over which an adapted kl_coef moves by its error."""

    max_approx_kl: float | None = Field(default=0.1, gt=0)
    """Steps on a batch end early above this divergence from the policy that sampled it."""

    cliprange: float = Field(default=0.2, gt=0)
    """Clip of the probability ratio."""

    cliprange_value: float = Field(default=0.2, gt=0)
    """Clip of the value's step."""

    vf_coef: float = Field(default=0.5, gt=0)
    """Weight of the value loss."""

    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of an NLL term on the chosen responses of data.preferences, which keeps them likely and
    shows the policy what it may never sample (PPO-ptx)."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""

    lam: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalized advantage estimation."""

    reward_clamp: float = Field(default=4.0, gt=0)
    """Scores, standardized by the first batch, are clamped to this."""

    missing_eos_penalty: float | None = Field(default=3.0, gt=0)
    """A response that does not end scores minus this; None is off."""

    min_reward_accuracy: float = Field(default=0.55, ge=0, le=1)
    """Held-out accuracy that the reward model must reach, its 95 % lower bound above 0.5."""

    on_weak_reward: Literal["stop", "dpo"] = "stop"
    """Where it does not: the run ends, or the dpo section's method takes PPO's place."""

    logging_steps: int = Field(default=1, ge=1)
    """Updates between two logged metrics."""

    save_steps: int = Field(default=5, ge=1)
    """Updates between two certified checkpoints."""

    @property
    def uses_reward_model(self) -> bool:
        """Whether the reward model is among the rewards."""
        return any(term.source == REWARD_MODEL for term in self.rewards)

    @property
    def value_rate(self) -> float:
        """Rate of the value model in force."""
        return self.value_learning_rate or self.learning_rate

    @model_validator(mode="after")
    def _minibatches_divide(self) -> Self:
        sources = [term.source for term in self.rewards]
        if len(set(sources)) < len(sources):
            raise ValueError(f"rewards names a source twice: {sources}; give it one weight")
        if self.batch_size % self.num_mini_batches:
            raise ValueError(
                f"batch_size is {self.batch_size}, which num_mini_batches "
                f"{self.num_mini_batches} does not divide; change one"
            )
        return self
