"""PPO's arithmetic: advantages, clipped losses, KL estimates. Pure functions of tensors.

Shapes: B rollouts, T response tokens, right-padded; `mask` is 1.0 on real response tokens (the
end-of-sequence token included) and 0.0 on padding. Every statistic is over real tokens only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens; scalar."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Zero mean and unit variance over real tokens; padding becomes 0. Shape [B, T]."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return (values - mean) * torch.rsqrt(variance + epsilon) * mask


def kl_per_token(logps: Tensor, reference_logps: Tensor, estimator: str) -> Tensor:
    """Estimate of KL(policy || reference) at each sampled token, nats. Shape [B, T].

    Args:
        logps: Of the sampled tokens under the policy that sampled them, [B, T].
        reference_logps: Under the reference, [B, T].
        estimator: `k1`, log-ratio (unbiased, may be negative), or `k3`, r - 1 - log r with
            r = reference / policy (unbiased, never negative, less variance).

    Source: Schulman 2020, "Approximating KL divergence".
    """
    log_ratio = logps - reference_logps
    if estimator == "k1":
        return log_ratio
    return torch.exp(-log_ratio) - 1 + log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token: minus the KL penalty, plus the score at the last real token. [B, T].

    Args:
        scores: One per rollout, [B].
        kl: Per token, [B, T].
        mask: [B, T]. A rollout without a real token gets no score.
        kl_coef: Weight of the penalty, >= 0.
    """
    rewards = -kl_coef * kl * mask
    last = (mask.sum(dim=1).long() - 1).clamp(min=0)
    has_token = mask.sum(dim=1) > 0
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last] = rewards[rows, last] + scores * has_token
    return rewards


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, each [B, T], zero on padding.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, where V and A after
    the last real token are 0.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    advantages = torch.zeros_like(rewards)
    following_value = torch.zeros_like(rewards[:, 0])
    following_advantage = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        real = mask[:, t]
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        advantage = (delta + gamma * lam * following_advantage) * real
        advantages[:, t] = advantage
        following_advantage = advantage
        following_value = values[:, t] * real
    return advantages, (advantages + values) * mask


class PolicyLoss(NamedTuple):
    """The clipped surrogate, and what to watch of it."""

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor
    ratio: Tensor


def clipped_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, cliprange: float
) -> PolicyLoss:
    """PPO's clipped surrogate, averaged over real tokens.

    Args:
        logps: Under the policy being trained, [B, T]; carries gradient.
        old_logps: Under the policy that sampled, [B, T].
        advantages: [B, T].
        mask: [B, T].
        cliprange: Epsilon; ratios outside 1 ± epsilon stop pulling.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    log_ratio = (logps - old_logps) * mask
    ratio = torch.exp(log_ratio)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return PolicyLoss(
        loss=masked_mean(torch.maximum(unclipped, clipped), mask),
        clip_fraction=masked_mean((clipped > unclipped).float(), mask).detach(),
        approx_kl=(0.5 * masked_mean(log_ratio**2, mask)).detach(),
        ratio=masked_mean(ratio, mask).detach(),
    )


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, cliprange_value: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error, the step of the value clipped, and the share of clipped tokens.

    Both scalars, over real tokens.
    """
    clipped_values = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    unclipped = (values - returns) ** 2
    clipped = (clipped_values - returns) ** 2
    loss = 0.5 * masked_mean(torch.maximum(unclipped, clipped), mask)
    return loss, masked_mean((clipped > unclipped).float(), mask).detach()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Share of the variance of returns ([B, T], real tokens) that values foretell.

    1 is all of it, 0 what a constant does, less is worse than that; 0 where returns are all equal.
    """
    real = mask.bool()
    errors, known = (returns - values)[real], returns[real]
    variance = known.var(correction=0).item()
    return 1 - errors.var(correction=0).item() / variance if variance > 0 else 0.0


def adapted_kl_coef(
    kl_coef: float, kl: float, target: float, horizon: float, samples: int
) -> float:
    """Adaptive coefficient: rises when `kl` is above `target`, falls below, 20 % at the most.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """
    error = max(-0.2, min(0.2, kl / target - 1))
    return kl_coef * (1 + error * samples / horizon)
