"""Every stage and every method in one row, from which all other lists of them are derived. No torch.

A new method is one file in `alignflow/training/methods/`, one section in `alignflow/recipe/` and one
row in METHODS.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from alignflow.recipe.online import DistillSection, GRPOSection, PPOSection, RFTSection, RLOOSection
from alignflow.recipe.preferences import DPOSection, KTOSection, ORPOSection, SimPOSection
from alignflow.recipe.pretraining import PretrainSection
from alignflow.recipe.sources import ModelSource
from alignflow.recipe.training import RewardSection, SFTSection, TrainingSection

PAIRS = (("preferences",),)
PROMPTS = (("prompts", "preferences"),)
TRANSFORMERS_ARGUMENTS = "transformers.training_args:TrainingArguments"
SFT_ARGUMENTS = "trl.trainer.sft_config:SFTConfig"


class TrainingStage(NamedTuple):
    """A stage that trains, as all others know it."""

    section: type[TrainingSection]
    """Of the recipe, under the stage's name."""
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
    least_micro_batch: int = 1
    """Rows that its loss compares with one another, so that a forward pass must have them."""
    version: int = 1
    """Raised where the same section comes to learn other weights; part of the stage's key."""

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
        DPOSection, "trl.trainer.dpo_config:DPOConfig", PAIRS, reference="adapters", version=2
    ),
    "ppo": TrainingStage(PPOSection, None, PROMPTS, samples=True, version=2),
    "orpo": TrainingStage(ORPOSection, TRANSFORMERS_ARGUMENTS, PAIRS, optional_parts=("sft",)),
    "simpo": TrainingStage(SimPOSection, TRANSFORMERS_ARGUMENTS, PAIRS),
    "kto": TrainingStage(
        KTOSection,
        "trl.trainer.kto_config:KTOConfig",
        (("ratings", "preferences"),),
        reference="always",
        least_micro_batch=2,
        version=2,
    ),
    "rloo": TrainingStage(
        RLOOSection,
        "trl.trainer.rloo_config:RLOOConfig",
        PROMPTS,
        reference="always",
        samples=True,
    ),
    "grpo": TrainingStage(
        GRPOSection,
        "trl.trainer.grpo_config:GRPOConfig",
        PROMPTS,
        reference="always",
        samples=True,
        version=2,
    ),
    "rft": TrainingStage(RFTSection, SFT_ARGUMENTS, PROMPTS, samples=True),
    "distill": TrainingStage(
        DistillSection, "trl.trainer.distillation_config:DistillationConfig", PROMPTS, samples=True
    ),
}
"""Alignment methods by name: that of the recipe's `method`, its section and its stage."""

TRAINING_STAGES: dict[str, TrainingStage] = {
    "pretrain": TrainingStage(
        PretrainSection, SFT_ARGUMENTS, (("pretrain",),), optional_parts=("replay", "general")
    ),
    "sft": TrainingStage(SFTSection, SFT_ARGUMENTS, (("sft",),)),
    "reward": TrainingStage(
        RewardSection, "trl.trainer.reward_config:RewardConfig", PAIRS, version=2
    ),
    **METHODS,
}
"""Stages that train, in the order in which they run; each is a module of its name."""


class Stage(NamedTuple):
    """A stage as its process and its task know it."""

    entry: str
    """Module and function, imported in the stage's own process."""
    on_device: bool = True
    """Whether it takes the GPU, where there is one."""
    online: bool = False
    """Whether it fetches models or data, which no other stage may."""


STAGES: dict[str, Stage] = {
    "prepare": Stage("alignflow.data.prepare:run", on_device=False, online=True),
    **{
        name: Stage(f"alignflow.training.methods.{name}:run", online=bool(row.named_models))
        for name, row in TRAINING_STAGES.items()
    },
    "evaluate": Stage("alignflow.evaluation.suite:run"),
    "judge": Stage("alignflow.gate.judge_model:run", online=True),
    "merge": Stage("alignflow.merging.stage:run"),
    "index": Stage("alignflow.retrieval.index:run", on_device=False, online=True),
    "paraphrase": Stage("alignflow.deciding.paraphrase:run"),
    "questions": Stage("alignflow.deciding.questions:run", on_device=False, online=True),
    "pose": Stage("alignflow.deciding.pose:run", on_device=False),
    "ask": Stage("alignflow.deciding.ask:run"),
}
