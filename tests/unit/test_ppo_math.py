"""The arithmetic of PPO against numbers worked by hand and a float64 loop."""

from __future__ import annotations

import math
import random

import pytest
import torch

from alignflow.training.rl import ppo_math


def test_advantages_by_hand() -> None:
    """One rollout of two tokens, then padding: rewards 0, 1; values 0.5, 0.25; gamma 1, lambda 0.5.

    delta_1 = 1 - 0.25 = 0.75                 A_1 = 0.75            return 1.0
    delta_0 = 0 + 0.25 - 0.5 = -0.25          A_0 = -0.25 + 0.5 * 0.75 = 0.125   return 0.625
    """
    advantages, returns = ppo_math.generalized_advantages(
        torch.tensor([[0.0, 1.0, 9.0]]),
        torch.tensor([[0.5, 0.25, 9.0]]),
        torch.tensor([[1.0, 1.0, 0.0]]),
        gamma=1.0,
        lam=0.5,
    )
    assert advantages.tolist() == [[0.125, 0.75, 0.0]]
    assert returns.tolist() == [[0.625, 1.0, 0.0]]


@pytest.mark.parametrize("seed", range(5))
def test_advantages_equal_a_brute_force_sum_in_float64(seed: int) -> None:
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, written out."""
    generator = random.Random(seed)
    length, gamma, lam = generator.randint(1, 12), 0.97, 0.9
    rewards = [generator.gauss(0, 1) for _ in range(length)]
    values = [generator.gauss(0, 1) for _ in range(length)] + [0.0]
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(length)]
    expected = [
        sum((gamma * lam) ** k * deltas[t + k] for k in range(length - t)) for t in range(length)
    ]
    padding = [5.0] * 3
    advantages, _ = ppo_math.generalized_advantages(
        torch.tensor([rewards + padding], dtype=torch.float64),
        torch.tensor([values[:-1] + padding], dtype=torch.float64),
        torch.tensor([[1.0] * length + [0.0] * 3], dtype=torch.float64),
        gamma=gamma,
        lam=lam,
    )
    assert advantages[0, :length].tolist() == pytest.approx(expected, rel=1e-12)
    assert advantages[0, length:].tolist() == [0.0] * 3


def test_the_policy_loss_stops_pulling_outside_the_clip_range() -> None:
    """Ratio 1.5, advantage 1, epsilon 0.2: loss -1.2, no gradient; ratio 1: loss -1, gradient -1."""
    logps = torch.log(torch.tensor([[1.5, 1.0]])).requires_grad_()
    result = ppo_math.clipped_policy_loss(
        logps, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2), cliprange=0.2
    )
    result.loss.backward()
    assert result.loss.item() == pytest.approx((-1.2 - 1.0) / 2)
    assert logps.grad is not None
    assert logps.grad.tolist() == [[0.0, -0.5]]
    assert result.clip_fraction.item() == 0.5
    assert result.approx_kl.item() == pytest.approx(0.5 * math.log(1.5) ** 2 / 2)


def test_the_value_loss_takes_the_worse_of_the_clipped_and_the_free_step() -> None:
    """Old 0, new 1, return 1, clip 0.2: free error 0, clipped error 0.64; loss 0.32."""
    loss, clipped = ppo_math.clipped_value_loss(
        torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1), cliprange_value=0.2
    )
    assert loss.item() == pytest.approx(0.32)
    assert clipped.item() == 1.0


def test_the_score_lands_on_the_last_real_token() -> None:
    rewards = ppo_math.token_rewards(
        torch.tensor([2.0, 3.0]),
        torch.tensor([[0.1, 0.2, 9.0], [0.1, 0.1, 0.1]]),
        torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]),
        kl_coef=0.5,
    )
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 1.9, 0.0], [-0.05, -0.05, 2.95]]))


def test_padding_changes_no_statistic() -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 6)
    wide, wide_mask = (
        torch.cat([values, torch.full((4, 3), 99.0)], 1),
        torch.cat([mask, torch.zeros(4, 3)], 1),
    )
    torch.testing.assert_close(
        ppo_math.whiten(wide, wide_mask)[:, :6], ppo_math.whiten(values, mask)
    )
    whitened = ppo_math.whiten(values, mask)
    assert whitened.mean().item() == pytest.approx(0, abs=1e-6)
    assert whitened.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_both_estimators_agree_with_the_exact_kl_in_the_mean() -> None:
    policy = torch.log_softmax(torch.tensor([1.0, 0.0, -1.0]), 0)
    reference = torch.log_softmax(torch.tensor([0.0, 0.5, 0.0]), 0)
    exact = (policy.exp() * (policy - reference)).sum()
    for estimator in ("k1", "k3"):
        estimate = ppo_math.kl_per_token(policy, reference, estimator)
        torch.testing.assert_close((policy.exp() * estimate).sum(), exact)
    assert (ppo_math.kl_per_token(policy, reference, "k3") >= 0).all()


def test_the_adaptive_coefficient_moves_toward_the_target() -> None:
    assert ppo_math.adapted_kl_coef(
        0.1, kl=12, target=6, horizon=1000, samples=100
    ) == pytest.approx(0.102)
    assert ppo_math.adapted_kl_coef(
        0.1, kl=3, target=6, horizon=1000, samples=100
    ) == pytest.approx(0.098)


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_a_loop_over_real_tokens_in_float64(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 5)
    new, old, advantages, values, old_values, returns = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(6)
    )
    lengths = [5, 2, 3]
    mask = (torch.arange(5) < torch.tensor(lengths).unsqueeze(1)).double()
    policy, value, clipped, moved, divergence = 0.0, 0.0, 0, 0, 0.0
    for row, length in enumerate(lengths):
        for t in range(length):
            ratio = math.exp(new[row, t] - old[row, t])
            kept = min(max(ratio, 0.8), 1.2)
            gain = float(advantages[row, t])
            policy += -min(gain * ratio, gain * kept)
            moved += gain * kept < gain * ratio
            divergence += 0.5 * float(new[row, t] - old[row, t]) ** 2
            step = min(max(float(values[row, t] - old_values[row, t]), -0.3), 0.3)
            free = float(values[row, t] - returns[row, t]) ** 2
            held = float(old_values[row, t] + step - returns[row, t]) ** 2
            value += 0.5 * max(free, held)
            clipped += held > free
    tokens = sum(lengths)
    found = ppo_math.clipped_policy_loss(new, old, advantages, mask, cliprange=0.2)
    assert found.loss.item() == pytest.approx(policy / tokens, rel=1e-12)
    assert found.clip_fraction.item() == pytest.approx(moved / tokens)
    assert found.approx_kl.item() == pytest.approx(divergence / tokens, rel=1e-12)
    loss, share = ppo_math.clipped_value_loss(
        values, old_values, returns, mask, cliprange_value=0.3
    )
    assert loss.item() == pytest.approx(value / tokens, rel=1e-12)
    assert share.item() == pytest.approx(clipped / tokens)


def test_explained_variance_by_hand() -> None:
    """Returns 0, 2 (variance 1), values 0, 1: errors 0, 1 have variance 0.25; padding is not read."""
    returns, mask = torch.tensor([[0.0, 2.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert ppo_math.explained_variance(torch.tensor([[0.0, 1.0, 5.0]]), returns, mask) == 0.75
    assert ppo_math.explained_variance(torch.zeros(1, 3), returns, mask) == 0.0
    assert ppo_math.explained_variance(returns, torch.ones(1, 3), mask) == 0.0
