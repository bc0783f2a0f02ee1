"""The sections of a recipe that say when to train again, and what a candidate has to prove."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from alignflow.recipe.section import Section
from alignflow.recipe.sources import ModelSource

PREFERENCE_SET_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""What names a preference set, in recipes and for the ledger."""


class JudgeSection(Section):
    """Who compares two responses where no metric of the recipe can: a function, a model or an endpoint."""

    function: str | None = None
    """Import path `package.module:name` of `name(prompt, first, second) -> "first"|"second"|"tie"`."""

    model: ModelSource | None = None
    """A chat model that answers here, in a stage of its own. Never one that the policy was trained with."""

    endpoint: str | None = None
    """Address up to `/v1` of an OpenAI-compatible server, local or not. ALIGNFLOW_JUDGE_KEY is its key."""

    endpoint_model: str = "default"
    """Name of the model on the endpoint."""

    endpoint_requests: int = Field(default=8, ge=1)
    """Requests to the endpoint at the same time."""

    instruction: str = "Which response answers the prompt better?"
    """What the judge model is asked."""

    timeout_seconds: float = Field(default=60.0, gt=0)
    """Of one request to the endpoint."""

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if sum(one is not None for one in (self.function, self.model, self.endpoint)) != 1:
            raise ValueError("a judge needs exactly one of function, model and endpoint")
        return self


class GateSection(Section):
    """What a candidate must prove against the champion before it takes its place."""

    profile: Literal["balanced", "strict"] = "balanced"
    """`balanced`: every test at alpha. `strict`: total_alpha spent over all tests on one hold-out."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance that one test of profile balanced promotes an equal model."""

    total_alpha: float = Field(default=0.10, gt=0, lt=0.5)
    """Chance that profile strict ever promotes an equal model."""

    metric: str | None = None
    """Metric that decides; None is the recipe's first, or the judge where there is one."""

    min_prompts: int = Field(default=100, ge=1)
    """With fewer prompts the verdict is inconclusive."""

    smallest_effect: float = Field(default=0.05, gt=0, lt=1)
    """Smallest gain worth finding, as a share of prompts. What is surely less is rejected."""

    power: float = Field(default=0.8, gt=0, lt=1)
    """Chance of finding `smallest_effect` that the hold-out should give."""

    max_general_loss_increase: float | None = Field(default=0.05, ge=0)
    """Loss on general text above the original base model's, in nats; None is off."""

    min_length_ratio: float = Field(default=0.8, ge=0, le=1)
    """Mean response length against the champion's, lower bound."""

    max_length_ratio: float = Field(default=1.25, ge=1)
    """Mean response length against the champion's, upper bound."""

    max_kl: float | None = Field(default=None, gt=0)
    """KL of the candidate to the lineage's reference, in nats per response; None is off."""

    max_unsafe_increase: float | None = Field(default=0.01, ge=0, le=1)
    """Share of unsafe answers above the champion's; None is off."""

    bootstrap_resamples: int = Field(default=10_000, ge=200)
    """Resamples of each interval."""


class RetrainSection(Section):
    """When the flow `retrain` trains, from what, and what decides about the result."""

    preference_set: str = Field(default="default", pattern=PREFERENCE_SET_PATTERN)
    """Name of the ledger's preference set."""

    min_new_pairs: int = Field(default=500, ge=1)
    """Rows newer than the last verdict without which a run ends at once."""

    start_from: Literal["champion", "base"] = "champion"
    """`champion`: continue its adapter on new and replayed rows. `base`: all stages on all rows."""

    reference: Literal["sft", "champion"] = "sft"
    """What the policy is held to: the lineage's SFT adapter, or the champion of the day."""

    replay_share: float = Field(default=0.2, ge=0, lt=1)
    """Share of the training rows that were consumed by earlier generations."""

    approval: Literal["none", "required"] = "none"
    """`required`: the run waits for a person in the Prefect UI before it promotes."""

    approval_timeout_hours: float = Field(default=72.0, gt=0)
    """How long it waits; then the verdict is inconclusive."""

    gate: GateSection = Field(default_factory=GateSection)
    """What a candidate has to prove."""

    judge: JudgeSection | None = None
    """Who compares responses; None leaves it to the recipe's metrics."""
