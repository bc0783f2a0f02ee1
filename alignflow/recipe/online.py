"""The sections of the methods that learn from responses that the policy samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from alignflow.recipe.rewards import REWARD_MODEL, RewardTerm, WatchSection
from alignflow.recipe.sources import ModelSource
from alignflow.recipe.training import TrainingSection

if TYPE_CHECKING:
    from alignflow.recipe.root import Recipe


class SampledSection(TrainingSection):
    """What the methods share whose policy answers prompts and learns from its own answers."""

    learning_rate: float = Field(default=1e-5, gt=0, lt=1)
    """Peak rate of AdamW."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest response, in tokens."""

    temperature: float = Field(default=1.0, gt=0)
    """Of the rollouts."""

    logging_steps: int = Field(default=1, ge=1)
    """Updates between two logged metrics."""

    save_steps: int = Field(default=5, ge=1)
    """Updates between two certified checkpoints."""


class RewardedSection(SampledSection):
    """What the methods share that learn from what the policy's answers are worth."""

    rewards: list[RewardTerm] = Field(
        default_factory=lambda: [RewardTerm(source=REWARD_MODEL)], min_length=1
    )
    """What is maximized: sources and weights."""

    min_reward_accuracy: float = Field(default=0.55, ge=0, le=1)
    """Held-out accuracy that the reward model must reach, its 95 % lower bound above 0.5."""

    @property
    def uses_reward_model(self) -> bool:
        """Whether the reward model is among the rewards."""
        return any(term.source == REWARD_MODEL for term in self.rewards)

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """See TrainingSection."""
        if self.uses_reward_model and recipe.reward is None:
            yield (
                f"{recipe.method}.rewards names the reward model; add a reward section, or name "
                "other rewards"
            )


class PPOSection(RewardedSection):
    """Proximal policy optimization of rewards. `batch_size` counts rollouts."""

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

    on_weak_reward: Literal["stop", "dpo"] = "stop"
    """Where it does not: the run ends, or the dpo section's method takes PPO's place."""

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

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """See TrainingSection."""
        yield from super().problems(recipe)
        if (
            self.on_weak_reward != "stop"
            and self.uses_reward_model
            and recipe.section_of(self.on_weak_reward) is None
        ):
            yield (
                f"ppo.on_weak_reward is {self.on_weak_reward} but there is no {self.on_weak_reward} "
                "section; add one"
            )
        if self.watch is not None and not recipe.data.prompts:
            yield (
                "ppo.watch answers held-out prompts with targets but data.prompts is empty; name "
                "a source, or remove watch"
            )
        if recipe.tuning.initialization == "loftq" and not recipe.has_a_start:
            yield (
                "tuning.initialization loftq moves the start away from the quantized base, which "
                "is ppo's reference where there is no sft section; add one, or use default"
            )

    def also_reads(self) -> tuple[str, ...]:
        """See TrainingSection."""
        return ("preferences",) if self.nll_weight else ()


class OnlineSection(RewardedSection):
    """What RLOO and GRPO share: `batch_size` counts rollouts, and every batch is sampled anew.

    Scores times weights are not standardized here: each group is by its own mean.
    """

    batch_size: int = Field(default=64, ge=2)
    """Rollouts per update, num_generations for each prompt."""

    num_generations: int = Field(default=4, ge=2)
    """Responses to a prompt, which are compared with one another; divides batch_size."""

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
    """How the loss is averaged over tokens (TRL's names). bnpo, over the whole update, is dapo."""


class RFTSection(RewardedSection):
    """Rejection sampling: SFT on the best of several responses to each prompt.

    All are sampled once, before training, from what the policy starts as: the SFT model, else the
    base. `batch_size` counts those that were kept.
    """

    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """Peak rate of AdamW."""

    num_generations: int = Field(default=4, ge=1)
    """Responses to a prompt, of which the best finished one is kept, the first of equals."""

    min_reward: float | None = None
    """A prompt whose best response is worth no more than this is dropped and counted; None keeps all.
    Scores times weights are not standardized here."""


class DistillSection(SampledSection):
    """On-policy distillation: the policy answers, and learns a teacher's probabilities on its answers.

    The loss is the reverse KL over the whole vocabulary. `batch_size` counts rollouts.
    """

    teacher: ModelSource
    """A model with the base model's vocabulary. An adapter is merged first (`alignflow merge`)."""
