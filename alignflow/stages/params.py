"""What each stage is told of the recipe: a record of its own, hashed into the stage's key."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field

from alignflow.recipe import (
    DataSection,
    EvaluationSection,
    MergeSection,
    ModelSource,
    TuningSection,
)
from alignflow.stages.spec import Record, StageSpec

AnyParams = TypeVar("AnyParams", bound="StageParams")


class StageParams(Record):
    """Fields that were not given stay out of the key, so that a new one changes no old key."""

    versions: dict[str, int] = Field(default_factory=dict)
    """Of what has come to compute something else since its first version, which is not given."""

    def as_json(self) -> dict[str, Any]:
        """The fields that were given, for `StageSpec.params`."""
        values = self.model_dump(mode="json")
        return {name: value for name, value in values.items() if name in self.model_fields_set}

    @classmethod
    def of(cls: type[AnyParams], spec: StageSpec) -> AnyParams:
        """Those of a spec."""
        return cls.model_validate(spec.params)


class NamedModel(Record):
    """A model by what a recipe calls it, and what it is."""

    source: str
    digest: str
    """Of its files; of a Hub model the commit."""


class ResolvedModel(ModelSource):
    """All that a recipe says of a model, and what it is."""

    digest: str
    """Of its files; of a Hub model the commit."""


class PrepareParams(StageParams):
    """Of stage `prepare`."""

    data: DataSection
    base_model: ResolvedModel
    limits: dict[str, int | None]
    """Longest row of each part, in tokens; None where no stage trains on it."""
    sources: dict[str, str]
    """Digest of each source's rows."""
    max_examples: int | None
    held_out_prompts: str | None = None
    """Digest of the ledger's hold-out, from which nothing is trained."""
    chat_template_digest: str | None = None


class ModelParams(StageParams):
    """Of every stage that loads a model."""

    tuning: TuningSection
    dtype: str
    """Compute type, resolved."""
    init_adapter_digest: str | None = None

    @property
    def quantization(self) -> Literal["nf4"] | None:
        """Of the base's weights."""
        return "nf4" if self.tuning.mode == "qlora" else None


class TrainingParams(ModelParams):
    """Of a stage that trains."""

    section: dict[str, Any]
    rewarded_by: dict[str, str] = Field(default_factory=dict)
    """Digests of the files that rewards are computed with, by source."""
    watched_by: dict[str, str] = Field(default_factory=dict)
    """Digests of the files of the metric that is watched."""
    models: dict[str, ResolvedModel] = Field(default_factory=dict)
    """Further models that the section names, such as a teacher, by field."""


class EvaluateParams(ModelParams):
    """Of stage `evaluate`."""

    section: EvaluationSection
    judged_by: dict[str, str] = Field(default_factory=dict)
    """Digests of the files that metrics are computed with."""


class MergeParams(ModelParams):
    """Of stage `merge`."""

    section: MergeSection
    evaluation: EvaluationSection
    judged_by: dict[str, str] = Field(default_factory=dict)


class JudgeParams(StageParams):
    """Of stage `judge`."""

    name: str
    instruction: str
    model: NamedModel
    dtype: str
    questions: str
    """Digest of what is asked."""
