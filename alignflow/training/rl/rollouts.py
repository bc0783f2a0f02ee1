"""Rollouts: responses sampled from the policy, with all that PPO's updates need of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignflow.errors import NumericsError
from alignflow.models import answers, respond
from alignflow.recipe import REWARD_MODEL, PPOSection
from alignflow.training.engine import token_statistics
from alignflow.training.rl import ppo_math
from alignflow.training.rl.reward_sources import RewardFunction, RewardScale, combined
from alignflow.training.rl.roles import Roles, Sequences


class Prompt(NamedTuple):
    """A prompt to answer."""

    ids: list[int]
    text: str
    """As the model reads it."""
    target: str | None
    """What an answer is rewarded by, where a reward needs that."""


class Chosen(NamedTuple):
    """A chosen response and its prompt, in token ids."""

    prompt: list[int]
    response: list[int]


class Setting(NamedTuple):
    """What stays the same from one batch of rollouts to the next."""

    section: PPOSection
    roles: Roles
    rewards: dict[str, RewardFunction]
    tokenizer: Any
    chosen: list[Chosen]
    """What the NLL term is of; none where there is no such term."""
    micro_batch_size: int
    dtype: str

    def precision(self) -> Any:
        """Mixed precision where the compute type is bfloat16."""
        kind = self.roles.model.device.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")


class Rollout(NamedTuple):
    """Sampled responses with all that the updates need; B rollouts, T response tokens."""

    sequences: Sequences
    logps: Tensor
    """Of the policy that sampled, [B, T]."""
    values: Tensor
    advantages: Tensor
    returns: Tensor
    metrics: dict[str, float]


class Read(NamedTuple):
    """What the four roles say of sampled responses, padding zero."""

    logps: Tensor
    """[B, T]."""
    reference_logps: Tensor
    entropy: Tensor
    values: Tensor
    scores: Tensor | None
    """The reward model's, [B]; None where it is no reward."""


@torch.no_grad()
def roll_out(
    setting: Setting,
    prompts: Sequence[Prompt],
    *,
    kl_coef: float,
    scales: dict[str, RewardScale] | None,
    seed: int,
) -> tuple[Rollout, dict[str, RewardScale]]:
    """Samples a response to each prompt, scores it, and estimates advantages.

    `scales` are those of the first batch's scores by source, which come back with the rollout; None
    measures them on this batch.
    """
    section, tokenizer = setting.section, setting.tokenizer
    with setting.roles.generating() as policy:
        responses = respond(
            policy,
            tokenizer,
            [prompt.ids for prompt in prompts],
            max_new_tokens=section.max_new_tokens,
            batch_size=len(prompts),
            temperature=section.temperature,
            seed=seed,
        )
    sequences = Sequences.of(
        [prompt.ids for prompt in prompts],
        [response.ids for response in responses],
        pad=tokenizer.pad_token_id,
        device=setting.roles.model.device,
    )
    ended = torch.tensor([r.ended for r in responses], device=sequences.tokens.device)
    mask = sequences.mask
    read = _read(setting, sequences)
    scores = score(setting, prompts, [list(r.ids) for r in responses], read.scores)
    if scales is None:
        scales = {source: RewardScale.of(values) for source, values in scores.items()}
        read = read._replace(values=_rescaled(setting, scales, read.values) * mask)
    total = combined(scores, scales, section.rewards, section.reward_clamp)
    if section.missing_eos_penalty is not None:
        total = torch.where(ended, total, torch.full_like(total, -section.missing_eos_penalty))
    kl = ppo_math.kl_per_token(read.logps, read.reference_logps, section.kl_estimator)
    rewards = ppo_math.token_rewards(total, kl, mask, kl_coef)
    advantages, returns = ppo_math.generalized_advantages(
        rewards, read.values, mask, gamma=section.gamma, lam=section.lam
    )
    if not bool(torch.isfinite(advantages).all()):
        raise NumericsError(
            "An advantage is NaN or inf: the policy, the value model or a reward diverged. Lower "
            "ppo.learning_rate or ppo.value_learning_rate."
        )
    sequence_kl = (kl * mask).sum(dim=1).mean().item()
    metrics = {
        "objective/kl": sequence_kl,
        "objective/entropy": read.entropy.sum(dim=1).mean().item(),
        "objective/non_score_reward": -kl_coef * sequence_kl,
        "objective/rlhf_reward": total.mean().item() - kl_coef * sequence_kl,
        "objective/scores": scores[section.rewards[0].source].mean().item(),
        "val/num_eos_tokens": float(ended.sum().item()),
        "val/explained_variance": ppo_math.explained_variance(read.values, returns, mask),
        "response_length": mask.sum(dim=1).mean().item(),
    }
    if len(scores) > 1:
        metrics |= {f"rewards/{source}": values.mean().item() for source, values in scores.items()}
    whitened = ppo_math.whiten(advantages, mask)
    return Rollout(sequences, read.logps, read.values, whitened, returns, metrics), scales


def _rescaled(setting: Setting, scales: dict[str, RewardScale], values: Tensor) -> Tensor:
    """Values in the scale of the rewards, where the value head starts as the reward model's."""
    if not setting.roles.value_is_reward or REWARD_MODEL not in scales:
        return values
    scale, terms = scales[REWARD_MODEL], setting.section.rewards
    weight = next(term.weight for term in terms if term.source == REWARD_MODEL)
    setting.roles.rescale_values(scale, weight)
    return weight * scale.apply(values)


def _read(setting: Setting, sequences: Sequences) -> Read:
    """One pass of each role over the responses, in micro-batches of like length."""
    roles, temperature = setting.roles, setting.section.temperature
    empty = torch.zeros_like(sequences.mask)
    logps, reference_logps, entropy, values = (empty.clone() for _ in range(4))
    scored = setting.section.uses_reward_model
    scores = torch.zeros(len(empty), device=empty.device)
    for rows in sequences.by_length(range(len(empty)), setting.micro_batch_size):
        part = sequences.rows(rows)
        tokens, mask = part.responses, part.mask
        width = tokens.shape[1]
        with setting.precision():
            states = roles.policy_states(part)
            own = token_statistics(roles.policy_head, states, tokens, mask, temperature=temperature)
            values[rows, :width] = roles.values(part, states) * mask
            states = roles.reference_states(part)
            reference = token_statistics(
                roles.reference_head, states, tokens, mask, temperature=temperature
            )
            if scored:
                scores[rows] = roles.scores(part)
        logps[rows, :width], entropy[rows, :width] = own
        reference_logps[rows, :width] = reference.logps
    return Read(logps, reference_logps, entropy, values, scores if scored else None)


def score(
    setting: Setting,
    prompts: Sequence[Prompt],
    responses: list[list[int]],
    model_scores: Tensor | None,
) -> dict[str, Tensor]:
    """Scores by source, [B] each."""
    texts = answers(setting.tokenizer, responses)
    device = setting.roles.model.device
    asked = [prompt.text for prompt in prompts], texts, [prompt.target for prompt in prompts]
    return {
        term.source: model_scores
        if term.source == REWARD_MODEL and model_scores is not None
        else setting.rewards[term.source](*asked).to(device)
        for term in setting.section.rewards
    }
