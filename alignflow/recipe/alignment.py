"""The sections of the alignment methods that need neither a reward model nor a reference model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from alignflow.recipe.training import TrainingSection


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
