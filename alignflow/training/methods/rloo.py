"""Stage `rloo`: REINFORCE, leave one out (Ahmadian et al. 2024, arXiv:2402.14740); TRL's trainer."""

from __future__ import annotations

from pathlib import Path

from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from alignflow.recipe import RLOOSection
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import StageResult, StageSpec
from alignflow.training.engine.common import read_job
from alignflow.training.rl.online import OnlineTrainer, run_online


class Trainer(OnlineTrainer, RLOOTrainer):
    """TRL's, on our prompts."""


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage."""
    job = read_job(spec, work, events, RLOOSection)
    return run_online(job, Trainer, RLOOConfig, beta=job.section.beta)
