"""The whole recipe: its sections, and what must fit between them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from alignflow.recipe.evaluation import (
    ComputeSection,
    EvaluationSection,
    MergeSection,
    TrackingSection,
)
from alignflow.recipe.retrain import RetrainSection
from alignflow.recipe.section import Section
from alignflow.recipe.sources import DataSection, ModelSource
from alignflow.recipe.training import DPOSection, PPOSection, RewardSection, SFTSection
from alignflow.recipe.tuning import TuningSection

METHODS = ("dpo", "ppo")


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

    sft: SFTSection | None = None
    """Supervised fine-tuning; None starts alignment from the base model."""

    reward: RewardSection | None = None
    """Reward model; None trains none."""

    method: Literal["dpo", "ppo", "none"] = "none"
    """Alignment method."""

    dpo: DPOSection | None = None
    """Settings of method dpo."""

    ppo: PPOSection | None = None
    """Settings of method ppo, which needs a reward section too."""

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
        for method in METHODS:
            given = getattr(self, method) is not None
            if self.method == method and not given:
                raise ValueError(f"method is {method} but there is no {method} section; add one")
            if self.method != method and given:
                raise ValueError(
                    f"there is a {method} section but method is {self.method}; "
                    f"set `method: {method}` or remove the section"
                )
        if self.method == "ppo" and self.reward is None:
            raise ValueError("method ppo maximizes a reward model; add a reward section")
        if self.sft is None and self.method == "none" and self.reward is None:
            raise ValueError("nothing to train: give sft, reward, or a method")
        if self.sft is not None and not self.data.sft:
            raise ValueError("there is an sft section but data.sft is empty; name a source")
        if (self.reward or self.method in METHODS) and not self.data.preferences:
            raise ValueError(
                "reward and alignment train on preferences but data.preferences is empty; "
                "name a source"
            )
        if self.tracking.upload == "merged" and self.merge is None:
            raise ValueError("tracking.upload is merged but merge is off; use adapter")
        return self

    @property
    def stages(self) -> list[str]:
        """Stages in their order."""
        return [
            "prepare",
            *(["sft"] if self.sft else []),
            *(["reward"] if self.reward else []),
            *([self.method] if self.method != "none" else []),
            *(["evaluate"] if self.data.evaluation or self.data.general else []),
            *(["merge"] if self.merge and (self.sft or self.method != "none") else []),
        ]
