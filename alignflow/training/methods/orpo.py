"""Stage `orpo`: odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691).

    L = NLL(chosen) - beta * log sigmoid(log odds(chosen) - log odds(rejected))
    odds(y) = p(y) / (1 - p(y)),  log p(y) = mean log-probability of y's tokens

Equations 4 to 7 of the paper. It learns format and preference at once, so it starts from the base.
Demonstrations, where there are any, have the NLL alone. Left out: the NLL of the prompt, unless the
recipe asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.recipe import ORPOSection
from alignflow.training.engine import ReferenceFree, Row, demonstration_rows


class ORPO(ReferenceFree[ORPOSection]):
    """The odds of the chosen response rise over those of the rejected one."""

    section = ORPOSection

    @cached_property
    def demonstrations(self) -> Sequence[Row]:
        """Those that no stage before this one trained on."""
        given = self.job.sft is None and self.job.data.rows("sft").is_dir()
        return demonstration_rows(self.job) if given else []

    @property
    def nll_on_prompt(self) -> bool:
        """As the paper's code has it."""
        return self.job.section.nll_on == "prompt_and_response"

    def loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return odds_ratio_loss(chosen, rejected, self.job.section.beta)

    def margin(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return log_odds_ratio(chosen, rejected)


run = ORPO.run


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
