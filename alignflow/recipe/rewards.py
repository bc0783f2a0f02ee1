"""What a sampled response is worth: sections of the methods that learn from rewards. No torch."""

from __future__ import annotations

from typing import Any, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from alignflow.recipe.judging import ExecutionArguments, MetricEntry, MetricUse
from alignflow.recipe.section import Section

REWARD_MODEL, EXECUTION = "reward_model", "execution"


class RewardTerm(ExecutionArguments):
    """One source of reward and its weight. A plain string is a source with weight 1."""

    source: str = Field(min_length=1)
    """`reward_model`; `execution`: 1 for SQL that returns the rows of the target's on `database`, or
    is exactly the `refusal` where that is the target, else 0 (without a database, on the freight
    job's); or your own function as `package.module:name` or `path/to/file.py:name`, called with
    `prompts`, `responses` and `targets`, lists of equal length; it returns a number each."""

    weight: float = 1.0
    """Factor on the source's score, which is first standardized by the first batch's."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("source")
    @classmethod
    def _known(cls, value: str) -> str:
        place, colon, name = value.rpartition(":")
        if value not in (REWARD_MODEL, EXECUTION) and not (place and colon and name.isidentifier()):
            raise ValueError(
                f"{value!r} is no source of rewards; use {REWARD_MODEL}, {EXECUTION}, or the place "
                "of a function, `package.module:name` or `path/to/file.py:name`"
            )
        return value

    @model_validator(mode="after")
    def _executes(self) -> Self:
        if self.database and self.source != EXECUTION:
            raise ValueError(f"database is for the source {EXECUTION}, and this is {self.source!r}")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Terms without a database keep the dump, and so the stage keys, of before there was one."""
        dumped = handler(self)
        return (
            dumped if self.database else {n: dumped[n] for n in ("source", "weight") if n in dumped}
        )

    @property
    def is_function(self) -> bool:
        """Whether the source is the user's own function."""
        return self.source not in (REWARD_MODEL, EXECUTION)


class WatchSection(Section):
    """A task metric on held-out prompts, which tells when a reward is maximized and no more."""

    metric: MetricEntry
    """Like an entry of evaluation.metrics. Its prompts are the held-out share of data.prompts."""

    every: int = Field(default=5, ge=1)
    """Updates between two evaluations."""

    examples: int = Field(default=64, ge=1)
    """Held-out prompts answered each time, one sampled response each."""

    keep: str = Field(default="best", pattern="^(best|last)$")
    """Which policy is the result: that of the best evaluation, or the last."""

    patience: int | None = Field(default=3, ge=1)
    """Evaluations in a row without a better one after which training ends; None is never."""

    @property
    def name(self) -> str:
        """The metric's, without its arguments."""
        return MetricUse.of(self.metric).name
