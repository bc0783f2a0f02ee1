"""What the gate reads of an evaluation: `scores.json`, every figure by prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from alignflow.errors import EvaluationError
from alignflow.evaluation.statistics import by_prompt
from alignflow.files import atomic_write_json, digest_json
from alignflow.stages import SCORES_FILE, Artifact, Record

if TYPE_CHECKING:  # loads torch, which whoever reads scores does without
    from alignflow.evaluation.measure import Job, Measured, Outcome


class Scores(Record):
    """One model on the pinned set, by prompt. Several responses to a prompt are averaged."""

    model: str
    """Digest of the model that was scored."""
    metrics: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Metric to prompt to value; higher is better."""
    length: dict[str, float] = Field(default_factory=dict)
    """Response tokens by prompt."""
    unsafe: dict[str, float] = Field(default_factory=dict)
    """Share of unsafe responses by prompt."""
    general_loss: dict[str, float] = Field(default_factory=dict)
    """Loss by general text, nats per token."""
    kl: dict[str, float] = Field(default_factory=dict)
    """Log-probability above the reference's by prompt, nats per response."""


def prompt_name(ids: list[int]) -> str:
    """Names a prompt in every evaluation: equal tokens, equal name."""
    return digest_json(ids)[:16]


def scores_of(job: Job, measured: Measured, model: str) -> Scores:
    """Figures by prompt of the model with that digest; responses to one prompt are averaged."""
    names = [f"{mode}{metric.name}" for mode in ("", "sampled_") for metric in job.metrics]
    outcomes = measured.outcomes
    loss = outcomes.get("perplexity_general")
    return Scores(
        model=model,
        metrics={name: _by_name(job, outcomes[name]) for name in names if name in outcomes},
        length=_by_name(job, outcomes.get("response_length")),
        unsafe=_by_name(job, outcomes.get("unsafe_rate")),
        kl=_by_name(job, outcomes.get("kl_to_sft")),
        general_loss=_by_text(loss) if loss else {},
    )


def _by_name(job: Job, outcome: Outcome | None) -> dict[str, float]:
    if outcome is None:
        return {}
    names = [prompt_name(job.prompts[place].ids) for place in outcome.clusters]
    return by_prompt(names, outcome.values)


def _by_text(outcome: Outcome) -> dict[str, float]:
    """Nats per token of each general text."""
    weights = outcome.weights or [1.0] * len(outcome.values)
    each = zip(outcome.clusters, outcome.values, weights, strict=True)
    return {f"text {place}": value / max(weight, 1.0) for place, value, weight in each}


def write_scores(path: Path, scores: Mapping[str, Scores]) -> None:
    """Writes the scores of several models, by role."""
    atomic_write_json(path, {role: own.model_dump(mode="json") for role, own in scores.items()})


def read_scores(evaluation: Artifact) -> dict[str, Scores]:
    """Scores of the models of an `evaluate` artifact, by role.

    Raises:
        EvaluationError: They are not there.
    """
    path = evaluation.directory / SCORES_FILE
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{path} cannot be read ({error}). Delete the artifact and run again."
        ) from error
    return {role: Scores.model_validate(own) for role, own in content.items()}
