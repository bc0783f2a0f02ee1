"""PPO's optimizer steps over one batch of rollouts."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import torch

from alignflow.errors import NumericsError
from alignflow.recipe import PPOSection
from alignflow.training.engine import new_optimizer, split_factors, token_statistics
from alignflow.training.rl import ppo_math
from alignflow.training.rl.chosen import nll_step
from alignflow.training.rl.roles import Roles
from alignflow.training.rl.rollouts import Chosen, Rollout, Setting

LAST_SHARE = 0.1
"""Of the peak rate, which linear and cosine schedules end at."""


def make_optimizer(
    roles: Roles, section: PPOSection, *, lora_plus_ratio: float | None = None, seed: int = 0
) -> torch.optim.Optimizer:
    """The section's optimizer with a rate for the policy and one for the value model."""
    parameters = roles.parameters()
    groups = [
        part
        for role, peak in (("policy", section.learning_rate), ("value", section.value_rate))
        for part in split_factors(
            roles.model, {"params": parameters[role], "peak": peak}, lora_plus_ratio
        )
    ]
    return new_optimizer(
        section, groups, seed=seed, lr=0.0, weight_decay=section.weight_decay, eps=1e-5
    )


def rate_share(section: PPOSection, done: int, total: int) -> float:
    """Share of the peak rate in force at an update: linear warm-up, then the schedule."""
    schedule, passed = section.lr_scheduler_type, done / total
    if schedule == "constant":
        return 1.0
    warmup = max(1, math.ceil(section.warmup_ratio * total))
    falling = {
        "linear": 1 - passed,
        "cosine": (1 + math.cos(math.pi * passed)) / 2,
        "constant_with_warmup": 1.0,
    }[schedule]
    share = falling if falling == 1.0 else LAST_SHARE + (1 - LAST_SHARE) * falling
    return min(1.0, (done + 1) / warmup) * share


def set_rates(optimizer: torch.optim.Optimizer, section: PPOSection, done: int, total: int) -> None:
    """Puts the rates of an update in force."""
    share = rate_share(section, done, total)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def optimize(
    setting: Setting, optimizer: torch.optim.Optimizer, rollout: Rollout, generator: random.Random
) -> dict[str, float]:
    """Minibatch passes over one rollout, ended early when the policy has moved too far.

    Gives TRL's metrics, means over the steps taken.
    """
    section = setting.section
    minibatch = len(rollout.logps) // section.num_mini_batches
    seen: list[dict[str, float]] = []
    for _ in range(section.num_ppo_epochs):
        order = list(range(len(rollout.logps)))
        generator.shuffle(order)
        for start in range(0, minibatch * section.num_mini_batches, minibatch):
            chosen = generator.sample(setting.chosen, min(minibatch, len(setting.chosen)))
            rows = order[start : start + minibatch]
            seen.append(step(setting, optimizer, rollout, rows, chosen))
            limit = section.max_approx_kl
            if limit is not None and seen[-1]["policy/approxkl_avg"] > limit:
                return _means(seen)
    return _means(seen)


def _means(seen: list[dict[str, float]]) -> dict[str, float]:
    ratios = [figures["val/ratio"] for figures in seen]
    mean = sum(ratios) / len(ratios)
    return {
        **{name: sum(figures[name] for figures in seen) / len(seen) for name in seen[0]},
        "val/ratio_var": sum((ratio - mean) ** 2 for ratio in ratios) / len(ratios),
        "steps": float(len(seen)),
    }


def step(
    setting: Setting,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    rows: list[int],
    chosen: list[Chosen],
) -> dict[str, float]:
    """One optimizer step on some rows of a rollout; `chosen` is what the NLL term is of.

    Its micro-batches are of like length, and weighted by their real tokens.

    Raises:
        NumericsError: The gradient is not finite.
    """
    whole = rollout.sequences.mask[torch.tensor(rows)].sum().item()
    totals: dict[str, float] = {}
    for part in rollout.sequences.by_length(rows, setting.micro_batch_size):
        share = rollout.sequences.mask[part].sum().item() / whole
        for name, value in micro_step(setting, rollout, part, share).items():
            totals[name] = totals.get(name, 0.0) + share * value
    if chosen:
        totals["loss/nll_avg"] = nll_step(setting, chosen)
    norms = clip_apart(setting.roles.parameters(), setting.section.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**totals, "policy/grad_norm": norms["policy"], "val/grad_norm": norms["value"]}


def clip_apart(
    parameters: Mapping[str, list[torch.nn.Parameter]], limit: float
) -> dict[str, float]:
    """Clips the gradient of each role by its own norm, so that a steep value loss slows no policy.

    Returns:
        The norms before, by role.

    Raises:
        NumericsError: One is not finite.
    """
    norms = {}
    for role, own in parameters.items():
        norms[role] = torch.nn.utils.clip_grad_norm_(own, limit).item()
        if not math.isfinite(norms[role]):
            raise NumericsError(
                f"The norm of the {role}'s gradient is {norms[role]}. Lower ppo.learning_rate or "
                "ppo.value_learning_rate."
            )
    return norms


def micro_step(
    setting: Setting, rollout: Rollout, rows: torch.Tensor, share: float
) -> dict[str, float]:
    """Adds a micro-batch's gradients, `share` of the minibatch's; returns its figures.

    A value model of its own has its forward pass after the policy's backward pass, so that only one
    model's activations are in memory.
    """
    section, roles = setting.section, setting.roles
    part = rollout.sequences.rows(rows)
    tokens, mask = part.responses, part.mask
    width = tokens.shape[1]
    with setting.precision():
        states = roles.policy_states(part)
        own = token_statistics(
            roles.policy_head, states, tokens, mask, temperature=section.temperature
        )
    policy = ppo_math.clipped_policy_loss(
        own.logps,
        rollout.logps[rows, :width],
        rollout.advantages[rows, :width],
        mask,
        cliprange=section.cliprange,
    )
    loss = policy.loss * share
    if not roles.value_reads_policy:
        loss.backward()
        loss = torch.zeros((), device=tokens.device)
    with setting.precision():
        values = roles.values(part, states)
    value_loss, value_clipped = ppo_math.clipped_value_loss(
        values * mask,
        rollout.values[rows, :width],
        rollout.returns[rows, :width],
        mask,
        cliprange_value=section.cliprange_value,
    )
    (loss + section.vf_coef * value_loss * share).backward()
    return {
        "loss/policy_avg": policy.loss.item(),
        "loss/value_avg": value_loss.item(),
        "policy/approxkl_avg": policy.approx_kl.item(),
        "policy/clipfrac_avg": policy.clip_fraction.item(),
        "policy/entropy_avg": ppo_math.masked_mean(own.entropy.detach(), mask).item(),
        "val/clipfrac_avg": value_clipped.item(),
        "val/ratio": policy.ratio.item(),
    }
