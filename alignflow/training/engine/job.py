"""A training stage's spec, read: the only place that knows what stands where in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from transformers import set_seed

from alignflow.models import BaseModel, base_of, load_tokenizer, quiet_libraries
from alignflow.recipe import TrainingSection, TuningSection
from alignflow.stages import CHECKPOINTS, EventWriter, Prepared, StageSpec, TrainingParams

AnySection = TypeVar("AnySection", bound=TrainingSection)


class Job(NamedTuple, Generic[AnySection]):
    """What a training stage has to do, and what it does it on."""

    spec: StageSpec
    work: Path
    events: EventWriter
    section: AnySection
    tuning: TuningSection
    dtype: str
    base: BaseModel
    tokenizer: Any

    @property
    def quantization(self) -> str | None:
        """Of the base's weights."""
        return "nf4" if self.tuning.mode == "qlora" else None

    @property
    def weights_dtype(self) -> str:
        """Of the base's weights: as the recipe has it where they train, else the compute type."""
        return self.tuning.weights_dtype if self.tuning.mode == "full" else self.dtype

    @property
    def data(self) -> Prepared:
        return Prepared(self.spec.input("data"))

    @property
    def sft(self) -> Path | None:
        """Directory of the SFT artifact, if there is one."""
        return self.spec.input("sft") if "sft" in self.spec.inputs else None

    @property
    def champion(self) -> Path | None:
        """Directory of the artifact whose weights a retrain continues, if it continues any."""
        return self.spec.input("init") if "init" in self.spec.inputs else None

    @property
    def reward_files(self) -> Mapping[str, str]:
        """Where the files of the rewards' functions are, by source."""
        return self.spec.paths

    @property
    def output(self) -> Path:
        """Where the artifact's files go."""
        return self.work / "output"

    @property
    def checkpoints(self) -> Path:
        """Where certified checkpoints are kept while it trains."""
        return self.work / CHECKPOINTS


def read_job(
    spec: StageSpec, work: Path, events: EventWriter, section: type[AnySection]
) -> Job[AnySection]:
    """Reads a spec, makes libraries quiet, and sets the seed before any weight is drawn."""
    quiet_libraries()
    set_seed(spec.seed)
    params = TrainingParams.of(spec)
    read, tokenizer = section.model_validate(params.section), load_tokenizer(spec.input("data"))
    return Job(spec, work, events, read, params.tuning, params.dtype, base_of(spec), tokenizer)
