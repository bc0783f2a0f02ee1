"""The sections of a recipe that say how models are judged, merged and recorded, and on what hardware."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from alignflow.recipe.judging import MetricEntry, MetricUse
from alignflow.recipe.section import Section

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"]


class EvaluationSection(Section):
    """How models are judged, before and after each stage."""

    metrics: list[MetricEntry] = Field(default_factory=lambda: ["exact_match"])
    """Modules of alignflow.evaluation.metrics (`execution_accuracy`, `exact_match`, `json_validity`, `overlap`, `token_f1`), or paths of your own `evaluate` modules; with arguments, `{execution_accuracy: {database: company.sqlite}}`. The first is `accuracy`."""

    models: list[Literal["base", "sft", "aligned"]] = Field(
        default_factory=lambda: ["base", "sft", "aligned"]
    )
    """Models that are evaluated."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest response, in tokens."""

    batch_size: int = Field(default=64, ge=1)
    """Prompts generated at once."""

    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the sampled responses."""

    sampled: bool = True
    """Also draw one response per prompt at `temperature`."""

    max_examples: int | None = Field(default=None, ge=1)
    """Prompts used of each group; None is all."""

    json_schema: str | None = None
    """Path of the JSON schema that `json_validity` checks responses against."""

    bootstrap_resamples: int = Field(default=2000, ge=100)
    """Resamples of the 95 % intervals, clustered by prompt."""

    @property
    def uses(self) -> list[MetricUse]:
        """The metrics with their arguments, in their order."""
        return [MetricUse.of(entry) for entry in self.metrics]


class MergeSection(Section):
    """How the adapter becomes part of the weights."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the merged weights; `auto` keeps the base model's."""

    qlora_base: Literal["dequantized", "original"] = "dequantized"
    """For QLoRA: merge into what the adapter was trained on, or into the original weights."""

    max_kl: float = Field(default=0.05, gt=0)
    """Certificate fails above this KL, in nats, of merged against base plus adapter."""


class ComputeSection(Section):
    """Hardware. Recorded, but not part of a stage's key."""

    micro_batch_size: int | Literal["auto"] = "auto"
    """Rows per forward pass; `auto` starts at the effective batch (on a CPU at 16 at most). An out-of-memory retry halves it."""

    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations to save memory; `auto` is on for a GPU, off for a CPU."""

    attention: Attention = "auto"
    """How attention is computed: the same function to rounding. `auto` is the architecture's own default."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a stage; None is all cores. A stage that is tried again, or goes on elsewhere,
    keeps those of its first attempt, so that it ends with the same bits."""

    timeout_seconds: float = Field(default=7 * 24 * 3600, gt=0)
    """A stage that runs longer is stopped and retried."""

    stall_seconds: float = Field(default=3600, gt=0)
    """A stage without progress for this long is stopped and retried."""

    retries: int = Field(default=3, ge=0, le=20)
    """Further attempts of a stage after a failure that may pass."""


class TrackingSection(Section):
    """What MLflow gets."""

    experiment: str | None = None
    """MLflow experiment; None is the recipe's name."""

    registered_model: str | None = None
    """Name the certified merged model is registered under; None is the recipe's name."""

    upload: Literal["merged", "adapter", "reference"] = "adapter"
    """Copied to the artifact store; `reference` only records the path, on storage all can read. An MLflow server registers only what is in its store, so there the merged model is always copied."""
