"""The whole recipe: its sections, and what must fit between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from alignflow.errors import RecipeError
from alignflow.recipe.alignment import KTOSection, ORPOSection, SimPOSection
from alignflow.recipe.evaluation import (
    ComputeSection,
    EvaluationSection,
    MergeSection,
    TrackingSection,
)
from alignflow.recipe.online import GRPOSection, OnlineSection, RLOOSection
from alignflow.recipe.pretraining import PretrainSection
from alignflow.recipe.retrain import RetrainSection
from alignflow.recipe.section import Section
from alignflow.recipe.sources import DataSection, ModelSource
from alignflow.recipe.training import (
    DPOSection,
    PPOSection,
    RewardSection,
    SFTSection,
    TrainingSection,
)
from alignflow.recipe.tuning import TuningSection

METHODS = ("dpo", "ppo", "orpo", "simpo", "kto", "rloo", "grpo")
PAIR_STAGES = ("reward", "dpo", "orpo", "simpo")
"""Stages that train on both responses of a pair."""


class Recipe(Section):
    """One pipeline, from data to a merged model."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")
    """Names the MLflow experiment and the runs: lower-case letters, digits, dots, dashes."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initialization, data order, dropout and sampling."""

    base_model: ModelSource
    """The pretrained weights."""

    data: DataSection
    """Rows to train and to judge on."""

    tuning: TuningSection = Field(default_factory=TuningSection)
    """Which weights move."""

    pretrain: PretrainSection | None = None
    """Continued pre-training on data.pretrain; None keeps the base model as it is."""

    sft: SFTSection | None = None
    """Supervised fine-tuning; None starts alignment from the base model."""

    reward: RewardSection | None = None
    """Reward model; None trains none."""

    method: Literal["dpo", "ppo", "orpo", "simpo", "kto", "rloo", "grpo", "none"] = "none"
    """Alignment method."""

    dpo: DPOSection | None = None
    """Settings of method dpo."""

    ppo: PPOSection | None = None
    """Settings of method ppo, which needs a reward section too."""

    orpo: ORPOSection | None = None
    """Settings of method orpo, which needs no sft section."""

    simpo: SimPOSection | None = None
    """Settings of method simpo."""

    kto: KTOSection | None = None
    """Settings of method kto."""

    rloo: RLOOSection | None = None
    """Settings of method rloo."""

    grpo: GRPOSection | None = None
    """Settings of method grpo."""

    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    """How models are judged."""

    merge: MergeSection | None = Field(default_factory=MergeSection)
    """How the result is merged; None leaves the adapter."""

    compute: ComputeSection = Field(default_factory=ComputeSection)
    """Hardware."""

    tracking: TrackingSection = Field(default_factory=TrackingSection)
    """MLflow."""

    retrain: RetrainSection | None = None
    """When the deployed flow `retrain` trains again, and what decides about the result."""

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if problems := list(self._problems()):
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """How sections contradict each other, each in one line."""
        for method in METHODS:
            given = getattr(self, method) is not None
            if self.method == method and not given:
                yield (f"method is {method} but there is no {method} section; add one")
            if method not in (self.method, self.fallback) and given:
                yield (
                    f"there is a {method} section but method is {self.method}; "
                    f"set `method: {method}` or remove the section"
                )
        if self.ppo is not None:
            yield from self._ppo_problems(self.ppo)
        if self.online is not None:
            yield from self._online_problems(self.online)
        if not self.training_sections:
            yield ("nothing to train: give sft, reward, pretrain, or a method")
        if self.pretrain is not None:
            yield from self._pretrain_problems(self.pretrain)
        if self.sft is not None and not self.data.sft:
            yield ("there is an sft section but data.sft is empty; name a source")
        if self.needs_preferences and not self.data.preferences:
            yield (
                "reward and alignment train on preferences but data.preferences is empty; "
                "name a source"
            )
        yield from self._start_problems()
        if self.tracking.upload == "merged" and self.merge is None:
            yield ("tracking.upload is merged but merge is off; use adapter")

    def _start_problems(self) -> Iterator[str]:
        """Whether a new adapter can start as `tuning.initialization` says."""
        start = self.tuning.initialization
        if start == "loftq" and self.merge is not None and self.merge.qlora_base == "original":
            yield (
                "tuning.initialization loftq holds what quantization lost, which merging into the "
                "original weights (merge.qlora_base) would add twice; use dequantized"
            )
        if self.sft is not None or self.tuning.init_adapter is not None:
            return
        if start == "eva" and self.method == "ppo" and self.tuning.mode != "full":
            yield (
                "tuning.initialization eva reads the inputs that rows with responses cause, and "
                "ppo without sft has prompts only; add an sft section, or use default"
            )
        if start == "loftq" and self.method == "ppo":
            yield (
                "tuning.initialization loftq moves the start away from the quantized base, which "
                "is ppo's reference where there is no sft section; add one, or use default"
            )

    def _pretrain_problems(self, pretrain: PretrainSection) -> Iterator[str]:
        if not self.data.pretrain:
            yield ("there is a pretrain section but data.pretrain is empty; name a source")
        if pretrain.replay_share > 0 and not self.data.replay:
            yield (
                f"pretrain.replay_share is {pretrain.replay_share:g} but data.replay is empty; name "
                "general text, or set the share to 0"
            )
        if self.tuning.init_adapter:
            yield (
                "tuning.init_adapter is an adapter of base_model, which pretrain changes; remove one"
            )
        if (pretrain.tuning or self.tuning).initialization == "eva":
            yield (
                "initialization is eva, which reads one text a row, and pretrain packs its rows; set "
                "another in pretrain.tuning"
            )

    def _online_problems(self, section: OnlineSection) -> Iterator[str]:
        if section.uses_reward_model and self.reward is None:
            yield (
                f"{self.method}.rewards names the reward model; add a reward section, or name other "
                "rewards"
            )
        starts = self.sft is None and self.tuning.init_adapter is None
        if starts and self.tuning.initialization == "eva":
            yield (
                f"tuning.initialization is eva, which needs responses to read, and {self.method} "
                "has prompts only; add an sft section, or use default"
            )

    @property
    def online(self) -> OnlineSection | None:
        """The section of a method that TRL samples responses for."""
        return self.rloo or self.grpo

    def _ppo_problems(self, ppo: PPOSection) -> Iterator[str]:
        if ppo.uses_reward_model and self.reward is None:
            yield (
                "ppo.rewards names the reward model; add a reward section, or name other rewards"
            )
        if self.fallback is not None and self.dpo is None:
            yield ("ppo.on_weak_reward is dpo but there is no dpo section; add one")
        if ppo.watch is not None and not self.data.prompts:
            yield (
                "ppo.watch answers held-out prompts with targets but data.prompts is empty; name "
                "a source, or remove watch"
            )

    @property
    def registered_model(self) -> str:
        """Name of its merged models, whose champion a retrain contends for."""
        return self.tracking.registered_model or self.name

    @property
    def fallback(self) -> str | None:
        """Method that takes PPO's place where the reward model is too weak for it."""
        if self.method != "ppo" or self.ppo is None or not self.ppo.uses_reward_model:
            return None
        return "dpo" if self.ppo.on_weak_reward == "dpo" else None

    @property
    def falling_back(self) -> Recipe:
        """The recipe with the fallback as its method."""
        return self.model_copy(update={"method": self.fallback, "ppo": None})

    @property
    def needs_preferences(self) -> bool:
        """Whether a stage trains on pairs, or a method takes prompts or responses from them."""
        if self.reward or self.fallback or (self.ppo and self.ppo.nll_weight):
            return True
        own = self.data.ratings if self.method == "kto" else self.data.prompts
        samples = self.method in ("kto", "ppo", "rloo", "grpo")
        return self.method != "none" and not (samples and own)

    @property
    def training_sections(self) -> dict[str, TrainingSection]:
        """Sections of the stages that train, or may in PPO's place, by stage in their order."""
        stages = [*self.stages, *([self.fallback] if self.fallback else [])]
        found = {stage: getattr(self, stage, None) for stage in stages}
        return {
            stage: section
            for stage, section in found.items()
            if isinstance(section, TrainingSection)
        }

    @property
    def lengths(self) -> dict[str, int]:
        """Longest row of each stage that trains, in tokens."""
        return {stage: section.max_length for stage, section in self.training_sections.items()}

    @property
    def stages(self) -> list[str]:
        """Stages in their order."""
        return [
            "prepare",
            *(["pretrain"] if self.pretrain else []),
            *(["sft"] if self.sft else []),
            *(["reward"] if self.reward else []),
            *([self.method] if self.method != "none" else []),
            *(["evaluate"] if self.data.evaluation or self.data.general else []),
            *(["merge"] if self.merge and (self.sft or self.method != "none") else []),
        ]


def require_retrain(recipe: Recipe) -> RetrainSection:
    """The recipe's section.

    Raises:
        RecipeError: There is none, or the recipe trains no policy on preferences, or merges none.
    """
    if recipe.retrain is None:
        raise RecipeError(
            f"recipe {recipe.name} has no `retrain` section; add one (`retrain: {{}}`)"
        )
    if recipe.method == "none":
        raise RecipeError(
            f"recipe {recipe.name} has method none, so new preferences would train no policy; "
            f"choose one of {', '.join(METHODS)}"
        )
    if recipe.merge is None:
        raise RecipeError(
            f"recipe {recipe.name} has merge off, but only a merged model with a certificate can "
            "become the champion; remove `merge: null`"
        )
    return recipe.retrain
