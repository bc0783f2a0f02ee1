"""Stage `simpo`: simple preference optimization (Meng et al. 2024, arXiv:2405.14734).

    L = -log sigmoid(beta * m(chosen) - beta * m(rejected) - gamma)

Equation 6 of the paper, with m(y) the mean log-probability of y's tokens. No reference is needed.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from alignflow.recipe import SimPOSection
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import StageResult, StageSpec
from alignflow.training.engine.common import read_job
from alignflow.training.engine.reference_free import Objective, run_reference_free


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage."""
    job = read_job(spec, work, events, SimPOSection)
    section = job.section
    objective = Objective(
        loss=lambda chosen, rejected: simpo_loss(
            chosen, rejected, section.beta, section.simpo_gamma, section.label_smoothing
        ),
        margin=lambda chosen, rejected: section.beta * (chosen - rejected),
        beta=section.beta,
        nll_weight=section.nll_weight,
    )
    return run_reference_free(job, objective, demonstrations=False)


def simpo_loss(
    chosen: Tensor, rejected: Tensor, beta: float, gamma: float, label_smoothing: float = 0.0
) -> Tensor:
    """Losses of pairs with these mean log-probabilities.

    At -0.5 and -1.0, beta 2 and gamma 1 the sigmoid is of 0: log 2 = 0.6931.
    """
    logits = beta * (chosen - rejected) - gamma
    return -F.logsigmoid(logits) * (1 - label_smoothing) - F.logsigmoid(-logits) * label_smoothing
