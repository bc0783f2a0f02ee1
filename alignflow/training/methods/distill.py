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

from alignflow.data import fetch_base, vocabulary_problem
from alignflow.errors import RecipeError
from alignflow.models import BaseModel, load_base
from alignflow.recipe import DistillSection
from alignflow.stages import TrainingParams
from alignflow.training.engine import Job
from alignflow.training.rl import OnlineTrainer, OnPrompts

REVERSE_KL = 1.0


class Trainer(OnlineTrainer, DistillationTrainer):
    """TRL's, on our prompts."""


class Distill(OnPrompts[DistillSection]):
    """Learns a teacher's probabilities on its own responses."""

    section, configuration, trainer = DistillSection, DistillationConfig, Trainer
    logged: ClassVar = {"loss": "loss", **OnPrompts.logged}

    def arguments(self) -> dict[str, Any]:
        """The divergence."""
        return {**super().arguments(), "beta": REVERSE_KL}

    def options(self) -> dict[str, Any]:
        """The teacher too."""
        return {**super().options(), "teacher_model": teacher_of(self.job)}


def teacher_of(job: Job[DistillSection]) -> Any:
    """The frozen teacher, in the types of a frozen base.

    Raises:
        RecipeError: It has another vocabulary, or cannot be fetched.
    """
    named = TrainingParams.of(job.spec).models["teacher"]
    home, path = Path(job.spec.home), job.spec.paths.get("teacher")
    directory = fetch_base(named, path, home, "distill.teacher")
    if problem := vocabulary_problem(Path(job.base.path), directory):
        raise RecipeError(f"distill.teacher: {directory} {problem}")
    teacher = BaseModel(path=str(directory), source=named.source, digest=named.digest)
    model = load_base(teacher, dtype=job.dtype, quantization=job.quantization)
    return model.requires_grad_(False)


run = Distill.run
