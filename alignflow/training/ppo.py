"""Stage `ppo`: proximal policy optimization against the reward model, on one shared base.

Our own loop: TRL deleted its trainer in September 2026, and it could not be resumed. Left out on
purpose: value clipping schedules, prompt curricula, several reward models at once.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignflow.artifacts import read_manifest
from alignflow.errors import DataError, NumericsError, Preempted
from alignflow.events import EventWriter
from alignflow.recipe import PPOSection
from alignflow.stage import StageResult, StageSpec
from alignflow.training import ppo_math
from alignflow.training.callbacks import StopOnTerminate
from alignflow.training.checkpoints import certify, newest_whole, rotate, step_of
from alignflow.training.common import Job, account, micro_batch_size, read_job, read_rows
from alignflow.training.roles import Roles, Sequences, load_roles, token_logps
from alignflow.training.rollouts import sample
from alignflow.training.saving import parameters, save


class Rollout(NamedTuple):
    """Sampled responses with all that the updates need; B rollouts, T response tokens."""

    sequences: Sequences
    logps: Tensor
    """Of the policy that sampled, [B, T]."""
    values: Tensor
    advantages: Tensor
    returns: Tensor
    metrics: dict[str, float]


class State:
    """What changes from one update to the next, beside weights and random generators."""

    def __init__(self, kl_coef: float) -> None:
        self.update = 0
        self.kl_coef = kl_coef
        self.scale: ppo_math.RewardScale | None = None


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage."""
    job = read_job(spec, work, events, PPOSection)
    section = job.section
    demand_good_reward(spec.input("reward"), section.min_reward_accuracy)
    rows = read_rows(spec.input("data") / "preferences" / "train.parquet")
    prompts = [list(ids) for ids in dict.fromkeys(tuple(row["prompt_ids"]) for row in rows)]
    prompts = [ids for ids in prompts if len(ids) + section.max_new_tokens <= section.max_length]
    updates = section.max_steps or max(
        1, round(section.num_train_epochs * len(prompts) / section.batch_size)
    )
    roles = load_roles(job.base, job.sft, spec.input("reward"), job.tuning, dtype=job.weights_dtype)
    optimizer = make_optimizer(roles, section)
    state = State(section.kl_coef)
    checkpoints = work / "checkpoints"
    resume(checkpoints, roles, optimizer, state, events)
    stop = StopOnTerminate()
    metrics: dict[str, float] = {}
    with stop.listening():
        while state.update < updates:
            events.progress(state.update, updates, "updates")
            metrics = update(job, roles, optimizer, state, prompts, updates)
            state.update += 1
            if state.update % section.logging_steps == 0 or state.update == updates:
                events.metrics(state.update, metrics)
            if state.update % section.save_steps == 0 or stop.asked:
                save_checkpoint(checkpoints, roles, optimizer, state)
            if stop.asked and state.update < updates:
                raise Preempted(
                    f"Stopped by SIGTERM at update {state.update} of {updates}; the next attempt "
                    "continues from it."
                )
    events.progress(updates, updates, "updates")
    roles.model.eval()
    save(roles.policy_to_save(), job)
    return StageResult(
        metrics={
            "reward": metrics.get("objective/scores"),
            "kl": metrics.get("objective/kl"),
            "entropy": metrics.get("objective/entropy"),
            "kl_coef": state.kl_coef,
        },
        rows=account(job, "preferences", len(rows)),
        params=parameters(roles.model, job, _micro_batch(job)),
        details={"updates": updates, "prompts": len(prompts)},
    )


def demand_good_reward(artifact: Path, least: float) -> None:
    """Refuses to optimize a reward model that cannot tell held-out pairs apart.

    Raises:
        DataError: Its accuracy is below `least`, or the 95 % interval reaches 0.5.
    """
    result = read_manifest(artifact).result
    accuracy = result.metrics.get("preference_accuracy")
    low, high = result.details.get("preference_accuracy_interval") or (None, None)
    if accuracy is None or low is None:
        raise DataError(
            "The reward model was not measured: no preference pair is held out. Raise "
            "data.held_out_share so that PPO knows what it optimizes."
        )
    if accuracy < least or low <= 0.5:
        raise DataError(
            f"The reward model ranks {accuracy:.1%} of held-out pairs rightly (95 % interval "
            f"{low:.1%} to {high:.1%}); PPO needs {least:.1%} and a lower bound above 50 %. More or "
            "cleaner pairs help; `method: dpo` needs no reward model."
        )


class _MicroBatch(NamedTuple):
    per_device_train_batch_size: int
    gradient_accumulation_steps: int


def _micro_batch(job: Job[PPOSection]) -> _MicroBatch:
    minibatch = job.section.batch_size // job.section.num_mini_batches
    micro = micro_batch_size(job.spec.compute, minibatch)
    return _MicroBatch(micro, minibatch // micro)


def make_optimizer(roles: Roles, section: PPOSection) -> torch.optim.AdamW:
    """AdamW with a rate for the policy and one for the value model."""
    parameters = roles.parameters()
    return torch.optim.AdamW(
        [
            {"params": parameters["policy"], "peak": section.learning_rate},
            {"params": parameters["value"], "peak": section.value_rate},
        ],
        lr=0.0,
        weight_decay=section.weight_decay,
        eps=1e-5,
    )


def set_rates(optimizer: torch.optim.Optimizer, section: PPOSection, done: int, total: int) -> None:
    """Linear warm-up, then linear decay to a tenth."""
    warmup = max(1, math.ceil(section.warmup_ratio * total))
    share = min(1.0, (done + 1) / warmup) * (1 - 0.9 * done / total)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def update(
    job: Job[PPOSection],
    roles: Roles,
    optimizer: torch.optim.Optimizer,
    state: State,
    prompts: list[list[int]],
    total: int,
) -> dict[str, float]:
    """Samples a batch, then takes its policy and value steps; returns TRL's metrics."""
    section = job.section
    generator = random.Random(f"{job.spec.seed}/{state.update}")
    batch = draw(prompts, section.batch_size, state.update, job.spec.seed)
    set_rates(optimizer, section, state.update, total)
    rollout = roll_out(job, roles, state, batch)
    metrics = optimize(job, roles, optimizer, rollout, generator)
    if section.target_kl is not None:
        state.kl_coef = ppo_math.adapted_kl_coef(
            state.kl_coef, rollout.metrics["objective/kl"], section.target_kl,
            section.kl_horizon, section.batch_size,
        )  # fmt: skip
    return {**rollout.metrics, **metrics, "lr": optimizer.param_groups[0]["lr"], "episode": float((state.update + 1) * section.batch_size)}  # fmt: skip


def draw(prompts: list[list[int]], count: int, update: int, seed: int) -> list[list[int]]:
    """Prompts of one update: passes over a shuffled order, another shuffle for each pass."""
    chosen = []
    for position in range(update * count, (update + 1) * count):
        turn, index = divmod(position, len(prompts))
        order = list(range(len(prompts)))
        random.Random(f"{seed}/{turn}").shuffle(order)
        chosen.append(prompts[order[index]])
    return chosen


@torch.no_grad()
def roll_out(job: Job[PPOSection], roles: Roles, state: State, prompts: list[list[int]]) -> Rollout:
    """Samples responses and computes log-probabilities, scores, values and advantages."""
    section, tokenizer = job.section, job.tokenizer
    with roles.generating() as policy:
        sequences = sample(
            policy, prompts, max_new_tokens=section.max_new_tokens,
            temperature=section.temperature, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id,
            seed=job.spec.seed * 1_000_003 + state.update,
        )  # fmt: skip
    mask = sequences.mask
    logps, reference_logps, entropy, values, scores = [], [], [], [], []
    size = _micro_batch(job).per_device_train_batch_size
    for rows in torch.arange(len(prompts)).split(size):
        part = Sequences(sequences.tokens[rows], sequences.attention[rows], sequences.prompt_length)
        logits = roles.policy_logits(part).float() / section.temperature
        logps.append(token_logps(logits, part.responses))
        entropy.append(torch.distributions.Categorical(logits=logits).entropy())
        reference = roles.reference_logits(part).float() / section.temperature
        reference_logps.append(token_logps(reference, part.responses))
        values.append(roles.values(part))
        scores.append(roles.scores(part))
    old_logps = torch.cat(logps) * mask
    kl = ppo_math.kl_per_token(old_logps, torch.cat(reference_logps) * mask, section.kl_estimator)
    raw = torch.cat(scores)
    if state.scale is None:
        state.scale = ppo_math.RewardScale.of(raw)
    scaled = state.scale.apply(raw, section.reward_clamp)
    last = (mask.sum(dim=1).long() - 1).clamp(min=0)
    ended = sequences.responses[torch.arange(len(last)), last] == tokenizer.eos_token_id
    if section.missing_eos_penalty is not None:
        scaled = torch.where(ended, scaled, torch.full_like(scaled, -section.missing_eos_penalty))
    rewards = ppo_math.token_rewards(scaled, kl, mask, state.kl_coef)
    old_values = torch.cat(values) * mask
    advantages, returns = ppo_math.generalized_advantages(
        rewards, old_values, mask, gamma=section.gamma, lam=section.lam
    )
    sequence_kl = (kl * mask).sum(dim=1).mean().item()
    metrics = {
        "objective/kl": sequence_kl,
        "objective/entropy": (torch.cat(entropy) * mask).sum(dim=1).mean().item(),
        "objective/non_score_reward": -state.kl_coef * sequence_kl,
        "objective/rlhf_reward": (scaled.mean().item() - state.kl_coef * sequence_kl),
        "objective/scores": raw.mean().item(),
        "val/num_eos_tokens": float(ended.sum().item()),
        "response_length": mask.sum(dim=1).mean().item(),
    }
    return Rollout(
        sequences, old_logps, old_values, ppo_math.whiten(advantages, mask), returns, metrics
    )


def optimize(
    job: Job[PPOSection],
    roles: Roles,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    generator: random.Random,
) -> dict[str, float]:
    """Minibatch epochs over one rollout, ended early when the policy has moved too far."""
    section = job.section
    count = len(rollout.logps)
    seen: dict[str, list[float]] = {}
    for _ in range(section.num_ppo_epochs):
        order = list(range(count))
        generator.shuffle(order)
        minibatch = count // section.num_mini_batches
        for start in range(0, minibatch * section.num_mini_batches, minibatch):
            figures = step(job, roles, optimizer, rollout, order[start : start + minibatch])
            for name, value in figures.items():
                seen.setdefault(name, []).append(value)
        if (
            section.max_approx_kl is not None
            and seen["policy/approxkl_avg"][-1] > section.max_approx_kl
        ):
            break
    return {name: sum(values) / len(values) for name, values in seen.items()}


def step(
    job: Job[PPOSection],
    roles: Roles,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    chosen: list[int],
) -> dict[str, float]:
    """One optimizer step; micro-batches sorted by length, weighted by their real tokens."""
    section = job.section
    lengths = rollout.sequences.attention.sum(dim=1)
    chosen = sorted(chosen, key=lambda row: (int(lengths[row]), row))
    tokens = rollout.sequences.mask[torch.tensor(chosen)].sum().item()
    totals: dict[str, float] = {}
    for rows in torch.tensor(chosen).split(_micro_batch(job).per_device_train_batch_size):
        part = rollout.sequences.rows(rows)
        width = part.responses.shape[1]
        mask = part.mask
        share = mask.sum().item() / tokens
        logits = roles.policy_logits(part).float() / section.temperature
        policy = ppo_math.clipped_policy_loss(
            token_logps(logits, part.responses) * mask, rollout.logps[rows, :width],
            rollout.advantages[rows, :width], mask, cliprange=section.cliprange,
        )  # fmt: skip
        (policy.loss * share).backward()
        value_loss, value_clipped = ppo_math.clipped_value_loss(
            roles.values(part) * mask, rollout.values[rows, :width],
            rollout.returns[rows, :width], mask, cliprange_value=section.cliprange_value,
        )  # fmt: skip
        (section.vf_coef * value_loss * share).backward()
        for name, value in (
            ("loss/policy_avg", policy.loss.item()),
            ("loss/value_avg", value_loss.item()),
            ("policy/approxkl_avg", policy.approx_kl.item()),
            ("policy/clipfrac_avg", policy.clip_fraction.item()),
            ("val/clipfrac_avg", value_clipped.item()),
            ("val/ratio", policy.ratio.item()),
        ):
            totals[name] = totals.get(name, 0.0) + share * value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, section.max_grad_norm).item()
    if not math.isfinite(norm):
        raise NumericsError(
            f"The gradient's norm is {norm}. Lower ppo.learning_rate or ppo.value_learning_rate."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    totals["grad_norm"] = norm
    return totals


def save_checkpoint(
    root: Path, roles: Roles, optimizer: torch.optim.Optimizer, state: State
) -> None:
    """Writes and certifies all that the next update depends on."""
    directory = root / f"checkpoint-{state.update}"
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().contiguous() for name, p in roles.trainable_state().items()}
    save_file(weights, directory / "weights.safetensors")
    torch.save(
        {
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "update": state.update,
            "kl_coef": state.kl_coef,
            "scale": tuple(state.scale) if state.scale else None,
        },
        directory / "state.pt",
    )
    certify(directory)
    rotate(root)


def resume(
    root: Path,
    roles: Roles,
    optimizer: torch.optim.Optimizer,
    state: State,
    events: EventWriter,
) -> None:
    """Takes up the newest checkpoint that verifies, if there is one."""
    checkpoint = newest_whole(root)
    if checkpoint is None:
        return
    weights = load_file(checkpoint / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in roles.trainable_state().items():
            parameter.copy_(weights[name])
    saved: dict[str, Any] = torch.load(checkpoint / "state.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["rng"])
    state.update, state.kl_coef = saved["update"], saved["kl_coef"]
    state.scale = ppo_math.RewardScale(*saved["scale"]) if saved["scale"] else None
    events.message(f"Continues from update {step_of(checkpoint)}.")
