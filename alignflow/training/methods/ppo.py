"""Stage `ppo`: proximal policy optimization of rewards, policy and value model on one shared base.

    prompts -> sampled responses -> rewards, values, advantages -> clipped steps -> prompts ...

Our own loop: TRL deleted its trainer in September 2026, and it could not be resumed. An update is
sampled, scored and learned from as a whole, and every checkpoint holds all that the next one depends
on. Dropout is off: a ratio of probabilities means nothing where they are random.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from trl.trainer.utils import disable_dropout_in_model

from alignflow.errors import Preempted
from alignflow.models import quiet
from alignflow.recipe import PPOSection
from alignflow.stages import EventWriter, RowAccount, StageResult, StageSpec
from alignflow.training.engine import (
    Job,
    StopOnTerminate,
    account,
    continue_from_champion,
    gradient_checkpointing,
    micro_batch_size,
    parameters,
    prepared_rows,
    read_job,
    save,
    sft_source,
)
from alignflow.training.rl import (
    Prompt,
    Prompts,
    Roles,
    SeparateModels,
    Setting,
    SharedBase,
    State,
    Watch,
    adapted_kl_coef,
    chosen_responses,
    demand_good_reward,
    describe,
    load_rewards,
    make_optimizer,
    optimize,
    put_weights,
    read_prompts,
    resume,
    roll_out,
    save_checkpoint,
    save_weights,
    set_rates,
)

BEST = "best"
"""Folder of the work directory that keeps the best policy so far."""


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    job = read_job(spec, work, events, PPOSection)
    section = job.section
    demand_good_reward(job)
    prompts = read_prompts(job)
    updates = section.max_steps or max(
        1, round(section.num_train_epochs * len(prompts.trained) / section.batch_size)
    )
    rewards = load_rewards(section.rewards, job.reward_files)
    chosen = chosen_responses(job)
    watch = Watch(section.watch, prompts.held_out) if section.watch else None
    roles = load_roles(job)
    minibatch = section.batch_size // section.num_mini_batches
    micro_batch = micro_batch_size(job.spec.compute, minibatch)
    setting = Setting(section, roles, rewards, job.tokenizer, chosen, micro_batch, job.dtype)
    params = parameters(roles.model, job, micro_batch, minibatch // micro_batch)
    state = State(section.kl_coef)
    train(job, setting, state, prompts.trained, updates, watch)
    kept = settle(job, roles, state, watch)
    roles.model.eval()
    save(roles.policy_to_save(), job)
    return StageResult(
        metrics={
            "reward": state.metrics.get("objective/scores"),
            "kl": state.metrics.get("objective/kl"),
            "entropy": state.metrics.get("objective/entropy"),
            "kl_coef": state.kl_coef,
            **({"watched": dict(state.watched.history)[kept]} if watch else {}),
        },
        rows=row_account(job, prompts, len(chosen)),
        params=params,
        details={
            "updates": state.update,
            "episodes": state.update * section.batch_size,
            "prompts": len(prompts.trained),
            **({"chosen_responses": len(chosen)} if chosen else {}),
            **(describe(state.watched, watch.section, kept) if watch else {}),
        },
    )


def row_account(job: Job[PPOSection], prompts: Prompts, chosen: int) -> RowAccount:
    """Of the prompts, and of the pairs of the NLL term where those are other rows."""
    if not chosen or prompts.part == "preferences":
        return prompts.rows
    held_out = prepared_rows(job, "preferences").held_out
    pairs = account(job, "preferences", trained=chosen, held_out=held_out)
    return RowAccount.total([prompts.rows, pairs])


def load_roles(job: Job[PPOSection]) -> Roles:
    """The four roles, as the recipe's tuning keeps them."""
    reward = job.spec.input("reward") if job.section.uses_reward_model else None
    options: Any = {"dtype": job.dtype, "value_model": job.section.value_model}
    roles: Roles
    if job.tuning.mode == "full":
        roles = SeparateModels(job.base, job.sft, reward, **options | {"dtype": job.weights_dtype})
    else:
        roles = SharedBase(job.base, sft_source(job)[0], reward, job.tuning, **options)
    continue_from_champion(roles.model, job)
    for model in roles.trained_models:
        disable_dropout_in_model(model)
        model.train()
        if gradient_checkpointing(job.spec.compute):
            with quiet():
                model.gradient_checkpointing_enable({"use_reentrant": False})
    return roles


def train(
    job: Job[PPOSection],
    setting: Setting,
    state: State,
    prompts: list[Prompt],
    updates: int,
    watch: Watch | None,
) -> None:
    """Makes the updates from the newest checkpoint on.

    Raises:
        NumericsError: A gradient or an advantage is not finite.
        Preempted: SIGTERM came; a checkpoint was saved.
    """
    section, events, roles = job.section, job.events, setting.roles
    optimizer = make_optimizer(
        roles, section, lora_plus_ratio=job.tuning.lora_plus_ratio, seed=job.spec.seed
    )
    resume(job.checkpoints, roles, optimizer, state, events)
    stop = StopOnTerminate()
    if watch and not state.watched.history:
        look(job, setting, state, watch)
    with stop.listening():
        while state.update < updates and not (watch and watch.exhausted(state.watched)):
            events.progress(state.update, updates, "updates")
            state.metrics = update(job, setting, optimizer, state, prompts, updates)
            state.update += 1
            if state.update % section.logging_steps == 0 or state.update == updates:
                events.metrics(state.update, state.metrics)
            due = watch if watch is not None and watch.due(state.update, updates) else None
            better = due is not None and look(job, setting, state, due)
            if state.update % section.save_steps == 0 or stop.asked or better:
                save_checkpoint(job.checkpoints, roles, optimizer, state)
            if stop.asked and state.update < updates:
                raise Preempted(
                    f"Stopped by SIGTERM at update {state.update} of {updates}; the next attempt "
                    "continues from it."
                )
    if watch and state.update < updates:
        events.message(
            f"{watch.section.name} on held-out prompts has not risen for "
            f"{watch.section.patience} evaluations: PPO ends at update {state.update} of "
            f"{updates}."
        )
    events.progress(updates, updates, "updates")


def update(
    job: Job[PPOSection],
    setting: Setting,
    optimizer: torch.optim.Optimizer,
    state: State,
    prompts: list[Prompt],
    total: int,
) -> dict[str, float]:
    """Samples a batch, then takes its policy and value steps; returns TRL's metrics."""
    started = time.monotonic()
    section, seed = job.section, job.spec.seed
    generator = random.Random(f"{seed}/{state.update}")
    batch = draw(prompts, section.batch_size, state.update, seed)
    set_rates(optimizer, section, state.update, total)
    sampling = seed * 1_000_003 + state.update
    rollout, state.scales = roll_out(
        setting, batch, kl_coef=state.kl_coef, scales=state.scales, seed=sampling
    )
    metrics = optimize(setting, optimizer, rollout, generator)
    if section.target_kl is not None:
        kl, horizon = rollout.metrics["objective/kl"], section.kl_horizon
        state.kl_coef = adapted_kl_coef(
            state.kl_coef, kl, section.target_kl, horizon, section.batch_size
        )
    return {
        **rollout.metrics,
        **metrics,
        "lr": optimizer.param_groups[0]["lr"],
        "eps": section.batch_size / (time.monotonic() - started),
        "episode": float((state.update + 1) * section.batch_size),
    }


def draw(prompts: Sequence[Prompt], count: int, update: int, seed: int) -> list[Prompt]:
    """Prompts of one update: passes over a shuffled order, another shuffle for each pass."""
    turn, start = divmod(update * count, len(prompts))
    drawn: list[Prompt] = []
    while len(drawn) < start + count:
        order = list(prompts)
        random.Random(f"{seed}/{turn}").shuffle(order)
        turn, drawn = turn + 1, drawn + order
    return drawn[start : start + count]


def look(job: Job[PPOSection], setting: Setting, state: State, watch: Watch) -> bool:
    """Evaluates on held-out prompts; whether the policy is better than all before it, and kept."""
    figure = watch.measure(setting)
    state.watched.history.append((state.update, figure))
    job.events.metrics(state.update, {f"watched/{watch.section.name}": figure})
    better = state.watched.best[0] == state.update
    if better:
        save_weights(job.work / BEST, state.update, setting.roles.policy_state())
    return better


def settle(job: Job[PPOSection], roles: Roles, state: State, watch: Watch | None) -> int:
    """Puts the weights that are the result in place; returns the update they are of."""
    if watch is None or watch.section.keep == "last":
        return state.update
    best, figure = state.watched.best
    if best != state.update:
        put_weights(roles.policy_state(), job.work / BEST / f"checkpoint-{best}")
        job.events.message(
            f"The policy after update {best} of {state.update} is kept: it has the highest "
            f"{watch.section.name} on held-out prompts, {figure:.3g}."
        )
    return best
