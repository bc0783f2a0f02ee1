"""What the sections of all stages that train have, and those of the stages before alignment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from alignflow.recipe.section import Section
from alignflow.recipe.sources import ModelSource

if TYPE_CHECKING:
    from alignflow.recipe.root import Recipe


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

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """How it contradicts the rest of the recipe, a line each."""
        del recipe
        yield from ()

    def models(self) -> dict[str, ModelSource]:
        """Models that it names beside the base, by field; all read and write the base's tokens."""
        return {name: value for name, value in self if isinstance(value, ModelSource)}

    def also_reads(self) -> tuple[str, ...]:
        """Parts of the data that these settings make the stage read, beside its row's."""
        return ()


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
