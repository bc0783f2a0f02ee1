"""Stage `grpo`: group relative policy optimization (Shao et al. 2024, arXiv:2402.03300); TRL's trainer."""

from __future__ import annotations

from pathlib import Path

from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from alignflow.recipe import GRPOSection
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import StageResult, StageSpec
from alignflow.training.engine.common import read_job
from alignflow.training.rl.online import OnlineTrainer, run_online


class Trainer(OnlineTrainer, GRPOTrainer):
    """TRL's, on our prompts."""


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage."""
    job = read_job(spec, work, events, GRPOSection)
    section = job.section
    return run_online(
        job,
        Trainer,
        GRPOConfig,
        beta=section.beta,
        scale_rewards=section.scale_rewards,
        loss_type=section.loss_type,
    )
