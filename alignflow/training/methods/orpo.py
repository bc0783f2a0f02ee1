"""Stage `orpo`: odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691).

    L = NLL(chosen) - beta * log sigmoid(log odds(chosen) - log odds(rejected))
    odds(y) = p(y) / (1 - p(y)),  log p(y) = mean log-probability of y's tokens

Equations 4 to 7 of the paper. It learns format and preference at once, so it starts from the base.
Demonstrations, where there are any, have the NLL alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.recipe import ORPOSection
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import StageResult, StageSpec
from alignflow.training.engine.common import has_demonstrations, read_job
from alignflow.training.engine.reference_free import Objective, run_reference_free


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage."""
    job = read_job(spec, work, events, ORPOSection)
    beta = job.section.beta
    objective = Objective(
        loss=lambda chosen, rejected: odds_ratio_loss(chosen, rejected, beta),
        margin=log_odds_ratio,
        beta=beta,
        nll_weight=1.0,
        nll_on_prompt=job.section.nll_on == "prompt_and_response",
    )
    return run_reference_free(job, objective, demonstrations=has_demonstrations(job))


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Log odds(chosen) - log odds(rejected), from mean log-probabilities below 0.

    At p = 0.5 and 0.25 the odds are 1 and 1/3, so the result is log 3 = 1.0986.
    """
    return (chosen - rejected) - (log_one_minus_exp(chosen) - log_one_minus_exp(rejected))


def odds_ratio_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-beta * log sigmoid of the log odds ratio.

    At p = 0.5 and 0.25 the sigmoid of log 3 is 3/4: 0.1 * -log 0.75 = 0.028768 at beta 0.1.
    """
    return -beta * F.logsigmoid(log_odds_ratio(chosen, rejected))


def log_one_minus_exp(values: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, exact near both ends (Mächler 2012); x is kept off 0."""
    values = values.clamp(max=-1e-6)
    near_zero = values > -0.6931472
    return torch.where(
        near_zero,
        torch.log(-torch.expm1(torch.where(near_zero, values, -1.0))),
        torch.log1p(-torch.exp(torch.where(near_zero, -1.0, values))),
    )
