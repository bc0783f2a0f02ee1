"""The sections of a recipe that say where weights and rows come from."""

from __future__ import annotations

import datetime
from typing import Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from alignflow.recipe.names import is_gguf
from alignflow.recipe.section import Section

DATA_PARTS = (
    "pretrain",
    "replay",
    "sft",
    "preferences",
    "ratings",
    "prompts",
    "evaluation",
    "general",
)
"""Fields of `DataSection` that name sources, in the order in which `prepare` reads them."""


class ModelSource(Section):
    """Pretrained weights. A plain string `SOURCE` or `SOURCE@REVISION` is accepted too."""

    source: str = Field(min_length=1)
    """`builtin:NAME`, a local directory, a Hub id such as `Qwen/Qwen3-0.6B`, or `gguf:PATH`, whose
    weights are dequantized."""

    revision: str | None = None
    """Hub commit, tag or branch. None is the default branch; its commit is recorded."""

    chat_template: str | None = None
    """Path of a Jinja chat template that replaces the tokenizer's own."""

    template_arguments: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """What the template is given, such as `{enable_thinking: false}`; written into the template that
    is saved with the model, so that it is in force wherever the model is."""

    template_date: datetime.date = datetime.date(2024, 7, 26)
    """What a template that writes today's date writes, in training and ever after."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if isinstance(value, str) and is_gguf(value):
            return {"source": value}
        if isinstance(value, str):
            source, _, revision = value.partition("@")
            return {"source": source, "revision": revision or None}
        return value


class DataSource(Section):
    """Rows. A plain string is accepted for a source with nothing else to say."""

    source: str = Field(min_length=1)
    """`builtin:NAME`, `ledger:NAME[@SNAPSHOT]`, a file or glob (.jsonl, .jsonl.gz, .json, .parquet,
    .csv), or a Hub dataset id."""

    revision: str | None = None
    """Hub commit, tag or branch."""

    split: str = "train"
    """Split of a Hub dataset."""

    subset: str | None = None
    """Configuration name of a Hub dataset."""

    weight: float = Field(default=1.0, gt=0, le=1)
    """Share of the source's rows that is used, drawn with the recipe's seed."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Column mapping, `{our name: name in the source}`."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class DataSection(Section):
    """Where rows come from, and how many may be lost."""

    pretrain: list[DataSource] = Field(default_factory=list)
    """Documents of the domain, `text`, that the pretrain stage reads."""

    replay: list[DataSource] = Field(default_factory=list)
    """General text, `text`, mixed into the documents against forgetting. Not data.general, on which
    forgetting is measured."""

    sft: list[DataSource] = Field(default_factory=list)
    """Demonstrations: text, prompt/completion, or chat messages."""

    preferences: list[DataSource] = Field(default_factory=list)
    """Pairs: prompt/chosen/rejected as text or messages, or implicit-prompt dialogues."""

    ratings: list[DataSource] = Field(default_factory=list)
    """Single responses that kto learns from: prompt, completion, and a label, liked or not."""

    prompts: list[DataSource] = Field(default_factory=list)
    """Prompts that the policy answers while it trains (PPO and others that sample), with a `target`
    each where a reward needs one; none takes the prompts of data.preferences."""

    evaluation: list[DataSource] = Field(default_factory=list)
    """Prompts with a `target` each; never trained on, in whatever source they also stand."""

    general: list[DataSource] = Field(default_factory=list)
    """General text on which forgetting is measured."""

    trained_turns: Literal["all", "last"] = "all"
    """Assistant turns of a demonstration that have loss."""

    held_out_share: float = Field(default=0.1, ge=0, le=0.5)
    """Share of preference prompts kept from training to measure the reward model and DPO, of
    data.prompts to watch PPO with, and of data.pretrain to measure its perplexity on."""

    max_dropped_share: float = Field(default=0.2, ge=0, le=1)
    """Largest share of a source's rows that may be bad or too long before `prepare` fails."""

    @field_validator(*DATA_PARTS, mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if value is None:
            return []
        return cast("list[Any]", value) if isinstance(value, list) else [value]
