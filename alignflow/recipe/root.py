"""The whole recipe: its sections, and what must fit between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from pydantic import Field, create_model, model_validator

from alignflow.errors import RecipeError
from alignflow.recipe.decide import DecideSection
from alignflow.recipe.evaluation import (
    ComputeSection,
    EvaluationSection,
    MergeSection,
    TrackingSection,
)
from alignflow.recipe.methods import METHODS, TRAINING_STAGES
from alignflow.recipe.online import PPOSection
from alignflow.recipe.pretraining import PretrainSection
from alignflow.recipe.retrain import RetrainSection
from alignflow.recipe.section import Section
from alignflow.recipe.sources import DATA_PARTS, DataSection, ModelSource
from alignflow.recipe.training import RewardSection, SFTSection, TrainingSection
from alignflow.recipe.tuning import TuningSection

AnySection = TypeVar("AnySection", bound=TrainingSection)

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[(*METHODS, "none")]


class _Start(Section):
    """The fields before those of the methods."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")
    """Names the MLflow experiment and the runs: lower-case letters, digits, dots, dashes. A recipe
    file that has none is called by the file's name."""

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
    """Supervised fine-tuning, with its defaults where data.sft has rows and this is left out (not with
    method orpo, which trains on them itself); `sft: null` starts alignment from the base model."""

    reward: RewardSection | None = None
    """Reward model; None trains none."""

    method: MethodName = "none"
    """Alignment method."""


_fields: dict[str, Any] = {
    name: (row.section | None, Field(default=None, description=f"Settings of method {name}."))
    for name, row in METHODS.items()
}
_WithMethods = create_model("_WithMethods", __base__=_Start, **_fields)


class Recipe(_WithMethods):
    """One pipeline, from data to a merged model."""

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

    notify: str | None = Field(default=None, pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")
    """Saved notification block of Prefect, by its slug (`slack-webhook/team`), that is told of the
    verdict of a retrain and of a failure; None is off."""

    decide: DecideSection | None = None
    """Whether to prompt, retrieve, fine-tune or pre-train, measured by `alignflow decide`."""

    @model_validator(mode="before")
    @classmethod
    def _demonstrations_are_for_sft(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = cast("dict[str, Any]", values)
        data = given.get("data")
        named = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
        rows = data.sft if isinstance(data, DataSection) else named.get("sft")
        if given.get("decide") is not None and data is None:
            return {**given, "data": {}}
        if not rows or "sft" in given or given.get("method") == "orpo":
            return given
        return {**given, "sft": {}}

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
        sections = self.training_sections
        for section in sections.values():
            yield from section.problems(self)
        if not sections and self.decide is None:
            yield ("nothing to train: give sft, reward, pretrain, or a method")
        if self.decide is not None and self.decide.pretrain.replay_share and not self.data.replay:
            yield (
                f"decide.pretrain.replay_share is {self.decide.pretrain.replay_share:g} but "
                "data.replay is empty; name general text, or set the share to 0"
            )
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
        samples = self.method in METHODS and METHODS[self.method].samples
        if start == "eva" and samples and not self.has_a_start and self.tuning.mode != "full":
            yield (
                "tuning.initialization eva reads the inputs that rows with responses cause, and "
                f"{self.method} without sft has prompts only; add an sft section, or use default"
            )

    @property
    def has_a_start(self) -> bool:
        """Whether alignment starts from something that is tuned already."""
        return self.sft is not None or self.tuning.init_adapter is not None

    def section_of(self, stage: str) -> TrainingSection | None:
        """The section of a stage that trains; None where the recipe has none."""
        section = getattr(self, stage, None)
        return section if isinstance(section, TrainingSection) else None

    def settings(self, kind: type[AnySection]) -> AnySection | None:
        """The method's section where it is of this kind, else None."""
        section = self.section_of(self.method)
        return section if isinstance(section, kind) else None

    @property
    def registered_model(self) -> str:
        """Name of its merged models, whose champion a retrain contends for."""
        return self.tracking.registered_model or self.name

    @property
    def fallback(self) -> str | None:
        """Method that takes PPO's place where the reward model is too weak for it."""
        ppo = self.settings(PPOSection)
        if ppo is None or not ppo.uses_reward_model or ppo.on_weak_reward == "stop":
            return None
        return ppo.on_weak_reward

    @property
    def falling_back(self) -> Recipe:
        """The recipe with the fallback as its method."""
        return self.model_copy(update={"method": self.fallback, self.method: None})

    @property
    def needs_preferences(self) -> bool:
        """Whether a stage trains on pairs, or a method takes prompts or responses from them."""
        return any("preferences" in self.parts_read(stage) for stage in self.training_sections)

    def parts_read(self, stage: str) -> tuple[str, ...]:
        """Parts of the data that a stage that trains reads; of no rows, the last alternative."""
        row, section = TRAINING_STAGES[stage], self.section_of(stage)
        filled = {part for part in DATA_PARTS if getattr(self.data, part)}
        main = [next((part for part in parts if part in filled), parts[-1]) for parts in row.parts]
        optional = [
            part
            for part in row.optional_parts
            if part in filled and (part == stage or self.section_of(part) is None)
        ]
        also = section.also_reads() if section is not None else ()
        return tuple(dict.fromkeys([*main, *optional, *also]))

    @property
    def training_sections(self) -> dict[str, TrainingSection]:
        """Sections of the stages that train, or may in PPO's place, by stage in their order."""
        stages = [*self.stages, *([self.fallback] if self.fallback else [])]
        sections = {stage: self.section_of(stage) for stage in stages}
        return {stage: section for stage, section in sections.items() if section is not None}

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


def require_decide(recipe: Recipe) -> DecideSection:
    """The recipe's section.

    Raises:
        RecipeError: There is none.
    """
    if recipe.decide is None:
        raise RecipeError(
            f"recipe {recipe.name} has no `decide` section; add one with `questions` and `documents` "
            "(docs/decide.md)"
        )
    return recipe.decide


def require_training(recipe: Recipe) -> None:
    """Refuses a recipe that has nothing to train.

    Raises:
        RecipeError: It has a `decide` section alone.
    """
    if not recipe.training_sections:
        raise RecipeError(
            f"recipe {recipe.name} has nothing to train but a `decide` section; `alignflow decide` "
            "compares what could be done"
        )
