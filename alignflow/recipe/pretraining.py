"""The section of a recipe that says how the base model reads documents before it is tuned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from alignflow.recipe.training import TrainingSection
from alignflow.recipe.tuning import TuningSection

if TYPE_CHECKING:
    from alignflow.recipe.root import Recipe


class PretrainSection(TrainingSection):
    """Continued pre-training on documents, for new domain language.

    Its result is the base model of all stages after it; adapters are merged first.
    """

    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """Peak rate of AdamW."""

    batch_size: int = Field(default=16, ge=1)
    """Packed rows per update, over all devices and accumulation."""

    max_length: int = Field(default=1024, ge=8)
    """Tokens of a packed row. No document sees another in its row; a longer one goes on in the next."""

    replay_share: float = Field(default=0.25, ge=0, lt=1)
    """Share of the tokens that are general text, from data.replay, against forgetting."""

    tuning: TuningSection | None = None
    """Which weights move in this stage; None is the recipe's tuning section."""

    @model_validator(mode="after")
    def _tunes(self) -> Self:
        tuning = self.tuning
        if tuning is not None and tuning.init_adapter:
            raise ValueError(
                "pretrain.tuning.init_adapter is set; this stage makes a new adapter and merges it"
            )
        return self

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """See TrainingSection."""
        if not recipe.data.pretrain:
            yield ("there is a pretrain section but data.pretrain is empty; name a source")
        if self.replay_share > 0 and not recipe.data.replay:
            yield (
                f"pretrain.replay_share is {self.replay_share:g} but data.replay is empty; name "
                "general text, or set the share to 0"
            )
        if recipe.tuning.init_adapter:
            yield (
                "tuning.init_adapter is an adapter of base_model, which pretrain changes; remove one"
            )
        if (self.tuning or recipe.tuning).initialization == "eva":
            yield (
                "initialization is eva, which reads one text a row, and pretrain packs its rows; set "
                "another in pretrain.tuning"
            )
