"""Every stage and every method in one row, from which all other lists of them are derived. No torch.

A new method is one file in `alignflow/training/methods/`, one section in `alignflow/recipe/` and one
row in METHODS.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from alignflow.recipe.online import (
    DistillSection,
    GRPOSection,
    PPOSection,
    RFTSection,
    RLOOSection,
)
from alignflow.recipe.preferences import DPOSection, KTOSection, ORPOSection, SimPOSection
from alignflow.recipe.pretraining import PretrainSection
from alignflow.recipe.sources import ModelSource
from alignflow.recipe.training import RewardSection, SFTSection, TrainingSection

PAIRS = (("preferences",),)
PROMPTS = (("prompts", "preferences"),)
TRANSFORMERS_ARGUMENTS = "transformers.training_args:TrainingArguments"


class TrainingStage(NamedTuple):
    """A stage that trains, as all others know it."""

    section: type[TrainingSection]
    """Of the recipe, under the stage's name."""
    entry: str
    """Module and function, imported in the stage's own process."""
    arguments: str | None
    """Configuration class whose fields `trainer_args` may name; None where there is no such trainer."""
    parts: tuple[tuple[str, ...], ...]
    """Parts of the data that it reads; of alternatives the first that has rows."""
    optional_parts: tuple[str, ...] = ()
    """Parts that it reads too, where they have rows and no stage before it trains on them."""
    reference: Literal["adapters", "always"] | None = None
    """Whether a reference is held beside the policy while it trains: always, or only with adapters,
    where full tuning asks it before the first step."""
    samples: bool = False
    """Whether the policy answers prompts: of preferences it then reads the prompts alone."""

    @property
    def trains_on_pairs(self) -> bool:
        """Whether a row is two responses."""
        return self.parts == PAIRS

    @property
    def named_models(self) -> list[str]:
        """Fields of the section that name a model beside the base, which the stage may fetch."""
        fields = self.section.model_fields.items()
        return [name for name, field in fields if field.annotation is ModelSource]


METHODS: dict[str, TrainingStage] = {
    "dpo": TrainingStage(
        section=DPOSection,
        entry="alignflow.training.methods.dpo:run",
        arguments="trl.trainer.dpo_config:DPOConfig",
        parts=PAIRS,
        reference="adapters",
    ),
    "ppo": TrainingStage(
        section=PPOSection,
        entry="alignflow.training.methods.ppo:run",
        arguments=None,
        parts=PROMPTS,
        samples=True,
    ),
    "orpo": TrainingStage(
        section=ORPOSection,
        entry="alignflow.training.methods.orpo:run",
        arguments=TRANSFORMERS_ARGUMENTS,
        parts=PAIRS,
        optional_parts=("sft",),
    ),
    "simpo": TrainingStage(
        section=SimPOSection,
        entry="alignflow.training.methods.simpo:run",
        arguments=TRANSFORMERS_ARGUMENTS,
        parts=PAIRS,
    ),
    "kto": TrainingStage(
        section=KTOSection,
        entry="alignflow.training.methods.kto:run",
        arguments="trl.trainer.kto_config:KTOConfig",
        parts=(("ratings", "preferences"),),
        reference="always",
    ),
    "rloo": TrainingStage(
        section=RLOOSection,
        entry="alignflow.training.methods.rloo:run",
        arguments="trl.trainer.rloo_config:RLOOConfig",
        parts=PROMPTS,
        reference="always",
        samples=True,
    ),
    "grpo": TrainingStage(
        section=GRPOSection,
        entry="alignflow.training.methods.grpo:run",
        arguments="trl.trainer.grpo_config:GRPOConfig",
        parts=PROMPTS,
        reference="always",
        samples=True,
    ),
    "rft": TrainingStage(
        section=RFTSection,
        entry="alignflow.training.methods.rft:run",
        arguments="trl.trainer.sft_config:SFTConfig",
        parts=PROMPTS,
        samples=True,
    ),
    "distill": TrainingStage(
        section=DistillSection,
        entry="alignflow.training.methods.distill:run",
        arguments="trl.trainer.distillation_config:DistillationConfig",
        parts=PROMPTS,
        samples=True,
    ),
}
"""Alignment methods by name: that of the recipe's `method`, its section and its stage."""

TRAINING_STAGES: dict[str, TrainingStage] = {
    "pretrain": TrainingStage(
        section=PretrainSection,
        entry="alignflow.training.methods.pretrain:run",
        arguments="trl.trainer.sft_config:SFTConfig",
        parts=(("pretrain",),),
        optional_parts=("replay", "general"),
    ),
    "sft": TrainingStage(
        section=SFTSection,
        entry="alignflow.training.methods.sft:run",
        arguments="trl.trainer.sft_config:SFTConfig",
        parts=(("sft",),),
    ),
    "reward": TrainingStage(
        section=RewardSection,
        entry="alignflow.training.methods.reward:run",
        arguments="trl.trainer.reward_config:RewardConfig",
        parts=PAIRS,
    ),
    **METHODS,
}
"""Stages that train, in the order in which they run."""


class Stage(NamedTuple):
    """A stage as its process and its task know it."""

    entry: str
    on_device: bool = True
    """Whether it takes the GPU, where there is one."""
    online: bool = False
    """Whether it fetches models or data, which no other stage may."""


STAGES: dict[str, Stage] = {
    "prepare": Stage("alignflow.data.prepare:run", on_device=False, online=True),
    **{
        name: Stage(row.entry, online=bool(row.named_models))
        for name, row in TRAINING_STAGES.items()
    },
    "evaluate": Stage("alignflow.evaluation.suite:run"),
    "judge": Stage("alignflow.gate.judge_model:run", online=True),
    "merge": Stage("alignflow.merging.stage:run"),
}
