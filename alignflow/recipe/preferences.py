"""The sections of the methods that learn from what people prefer: pairs, or single ratings."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignflow.recipe.training import TrainingSection

SMOOTHED_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")
"""TRL's losses of DPO that read `label_smoothing`; the others pass over it without a word."""


class DPOSection(TrainingSection):
    """Direct preference optimization from the SFT model, which stays as the reference."""

    learning_rate: float = Field(default=2e-5, gt=0, lt=1)
    """Peak rate of AdamW."""

    beta: float = Field(default=0.1, gt=0, le=10)
    """Pull toward the reference, dimensionless. Lower drifts further."""

    loss_type: list[str] = Field(default_factory=lambda: ["sigmoid", "sft"], min_length=1)
    """TRL's loss names. The SFT term keeps the chosen response likely."""

    loss_weights: list[float] | None = None
    """One weight per loss; None is 1.0 for the first and 0.5 for an SFT term, else 1.0."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of labels assumed wrong, for losses robust, exo_pair, aot and aot_unpaired."""

    @field_validator("loss_type", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _losses_fit(self) -> Self:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(self.loss_type)} "
                f"losses {self.loss_type}; give one per loss"
            )
        if "exo_pair" in self.loss_type and self.label_smoothing == 0:
            raise ValueError(
                "loss_type exo_pair takes the logarithm of label_smoothing, which is 0; set it, to "
                "1e-3 as in the paper"
            )
        if self.label_smoothing and not set(self.loss_type) & set(SMOOTHED_LOSSES):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing:g}, which {self.loss_type} would ignore; "
                f"remove it, or use one of {', '.join(SMOOTHED_LOSSES)}"
            )
        return self

    @property
    def weights(self) -> list[float]:
        """Loss weights in force, one per loss."""
        if self.loss_weights is not None:
            return self.loss_weights
        return [
            0.5 if name == "sft" and len(self.loss_type) > 1 else 1.0 for name in self.loss_type
        ]


class ORPOSection(TrainingSection):
    """Odds ratio preference optimization: tuning and alignment in one stage, without a reference.

    Where there is no sft section, rows of `data.sft` join the pairs; they have the NLL term only.
    """

    learning_rate: float = Field(default=5e-5, gt=0, lt=1)
    """Peak rate of AdamW."""

    beta: float = Field(default=0.1, gt=0, le=10)
    """Weight of the odds ratio term against the NLL of the chosen response (the paper's lambda)."""

    nll_on: Literal["response", "prompt_and_response"] = "response"
    """Tokens of the NLL term. The paper's code and TRL take the prompt too."""


class SimPOSection(TrainingSection):
    """Simple preference optimization: length-normalized log-probabilities, without a reference."""

    learning_rate: float = Field(default=1e-5, gt=0, lt=1)
    """Peak rate of AdamW."""

    beta: float = Field(default=2.0, gt=0, le=100)
    """Scale of the mean log-probability of a response, its reward."""

    simpo_gamma: float = Field(default=0.5, ge=0)
    """Margin by which the chosen response's reward must exceed that of the rejected one."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of labels assumed wrong."""

    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of an NLL term on the chosen response, which keeps it likely (CPO-SimPO)."""


class KTOSection(TrainingSection):
    """Kahneman-Tversky optimization of single responses that somebody liked or not.

    They are those of data.ratings, or the two responses of each pair of data.preferences.
    """

    learning_rate: float = Field(default=1e-5, gt=0, lt=1)
    """Peak rate of AdamW."""

    batch_size: int = Field(default=16, ge=2)
    """Responses per update. The KL is estimated within a micro-batch, so that one is too few."""

    beta: float = Field(default=0.1, gt=0, le=10)
    """Pull toward the reference, dimensionless. Lower drifts further."""

    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """TRL's loss names."""

    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight of liked responses. The paper: liked over disliked weight times count, 1 to 4/3."""

    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight of disliked responses."""
