"""Stage `simpo`: simple preference optimization (Meng et al. 2024, arXiv:2405.14734).

    L = -log sigmoid(beta * m(chosen) - beta * m(rejected) - gamma)

Equation 6 of the paper, with m(y) the mean log-probability of y's tokens. No reference is needed, and
nothing of the paper is left out; label smoothing and an NLL term are added where the recipe asks.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from alignflow.recipe import SimPOSection
from alignflow.training.engine import ReferenceFree


class SimPO(ReferenceFree[SimPOSection]):
    """The mean log-probability of the chosen response rises over that of the rejected one."""

    section = SimPOSection

    @property
    def nll_weight(self) -> float:
        return self.job.section.nll_weight

    def loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        gamma, smoothing = self.job.section.simpo_gamma, self.job.section.label_smoothing
        return simpo_loss(chosen, rejected, self.beta, gamma, smoothing)

    def margin(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return self.beta * (chosen - rejected)


run = SimPO.run


def simpo_loss(
    chosen: Tensor, rejected: Tensor, beta: float, gamma: float, label_smoothing: float = 0.0
) -> Tensor:
    """Losses of pairs with these mean log-probabilities.

    At -0.5 and -1.0, beta 2 and gamma 1 the sigmoid is of 0: log 2 = 0.6931.
    """
    logits = beta * (chosen - rejected) - gamma
    return -F.logsigmoid(logits) * (1 - label_smoothing) - F.logsigmoid(-logits) * label_smoothing
