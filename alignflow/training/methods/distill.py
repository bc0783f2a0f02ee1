"""Stage `distill`: on-policy distillation (Agarwal et al. 2024, arXiv:2306.13649); TRL's trainer.

    L = mean over tokens of y ~ p(.|x) of  sum over the vocabulary of p(v) * log p(v)/q(v)

Equation 4 of the paper with lambda 1 and the reverse KL, where q is the frozen teacher and p the
policy, both after the tokens before; no gradient goes through the sampling of y. Left out: responses
of others (lambda below 1), the reward of equation 5, and other divergences, for which
`trainer_args: {beta: ...}` is TRL's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer

from alignflow.data.base import fetch_base
from alignflow.data.vocabulary import vocabulary_difference
from alignflow.errors import ArtifactError, RecipeError
from alignflow.files import digest_directory
from alignflow.models.loading import BaseModel, load_base
from alignflow.recipe.online import DistillSection
from alignflow.stages.params import TrainingParams
from alignflow.training.engine.job import Job
from alignflow.training.rl.online import OnlineTrainer, OnPrompts

REVERSE_KL = 1.0


class Trainer(OnlineTrainer, DistillationTrainer):
    """TRL's, on our prompts."""


class Distill(OnPrompts[DistillSection]):
    """Learns a teacher's probabilities on its own responses."""

    section, configuration, trainer = DistillSection, DistillationConfig, Trainer
    logged: ClassVar = {
        "loss": "loss",
        "entropy": "entropy",
        "response_tokens": "completions/mean_length",
        "unfinished_rate": "completions/clipped_ratio",
    }

    def arguments(self) -> dict[str, Any]:
        """The divergence, and how responses are sampled."""
        section = self.job.section
        return {
            "beta": REVERSE_KL,
            "max_completion_length": section.max_new_tokens,
            "temperature": section.temperature,
        }

    def options(self) -> dict[str, Any]:
        """The teacher too."""
        return {**super().options(), "teacher_model": teacher_of(self.job)}


def teacher_of(job: Job[DistillSection]) -> Any:
    """The frozen teacher, in the types of a frozen base.

    Raises:
        ArtifactError: It is no longer what it was when the run was planned.
        RecipeError: It has another vocabulary, or cannot be fetched.
    """
    record, path = TrainingParams.of(job.spec).models["teacher"], job.spec.paths.get("teacher")
    directory = fetch_base(record.model_dump(), path, "distill.teacher")
    if path is not None and digest_directory(directory) != record.digest:
        raise ArtifactError(
            f"distill.teacher: {directory} is not what it was when the run began (digest "
            f"{record.digest[:12]}). Put that model back, or run the recipe again."
        )
    if difference := vocabulary_difference(Path(job.base.path), directory):
        raise RecipeError(
            f"distill.teacher: {record.source} has another vocabulary than the base model: "
            f"{difference}. Name a model of the same family and vocabulary."
        )
    teacher = BaseModel(path=str(directory), source=record.source, digest=record.digest)
    model = load_base(teacher, dtype=job.dtype, quantization=job.quantization)
    return model.requires_grad_(False)


run = Distill.run
