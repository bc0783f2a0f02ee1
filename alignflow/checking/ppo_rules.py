"""What a recipe shows to be wrong with its ppo section, and rules of thumb for it."""

from __future__ import annotations

from collections.abc import Iterator

from alignflow.checking.findings import Finding, advice, error, note
from alignflow.checking.judging_rules import metric_findings
from alignflow.evaluation import lower_is_better
from alignflow.recipe import EvaluationSection, PPOSection, Recipe, SampledSection

MOST_USUAL_PASSES = 4


def sampling_findings(recipe: Recipe) -> Iterator[Finding]:
    """Findings about any method that samples; none for another."""
    section = recipe.settings(SampledSection)
    if section is not None and section.max_new_tokens >= section.max_length:
        yield error(
            f"{recipe.method}.max_new_tokens",
            f"is {section.max_new_tokens} of max_length {section.max_length}, which leaves no room "
            "for a prompt; raise max_length.",
        )


def ppo_findings(recipe: Recipe) -> Iterator[Finding]:
    """Findings about method ppo; none for another method."""
    ppo = recipe.settings(PPOSection)
    if ppo is None:
        return
    yield from _errors(ppo)
    if recipe.tuning.mode == "full":
        models = model_count(ppo)
        yield note(
            "tuning.mode",
            f"is full: PPO holds {models} whole models at a time ({_roles(ppo)}). Adapters of mode "
            "lora or qlora share one base.",
        )
    if recipe.tuning.dropout:
        yield advice(
            "tuning.dropout", "is off in PPO, whose ratios of probabilities it would blur."
        )
    if ppo.kl_coef == 0 and ppo.target_kl is None:
        yield advice(
            "ppo.kl_coef", "is 0, so nothing keeps the policy near its reference; 0.05 is usual."
        )
    if ppo.num_ppo_epochs > MOST_USUAL_PASSES:
        yield advice(
            "ppo.num_ppo_epochs",
            f"is {ppo.num_ppo_epochs}; usual are 1 to {MOST_USUAL_PASSES} passes over a batch, "
            "which grows old while it is learned from.",
        )
    if recipe.data.prompts and ppo.watch is None:
        yield advice(
            "ppo.watch",
            "is not set, so a reward that is over-optimized goes unnoticed; name a metric to watch "
            "on held-out prompts.",
        )


def _errors(ppo: PPOSection) -> Iterator[Finding]:
    if ppo.trainer_args:
        yield error(
            "ppo.trainer_args", "has no effect: PPO is alignflow's own, not TRL's. Leave it out."
        )
    if ppo.watch is not None:
        watched = EvaluationSection(metrics=[ppo.watch.metric])
        yield from metric_findings("ppo.watch.metric", watched)
        if lower_is_better(ppo.watch.name):
            yield error(
                "ppo.watch.metric",
                f"is {ppo.watch.name!r}, the better the lower; watch keeps the highest.",
            )


def model_count(ppo: PPOSection) -> int:
    """Models, or adapters in their place, that PPO holds."""
    return 2 + ppo.uses_reward_model + (ppo.value_model == "separate")


def trained_count(ppo: PPOSection) -> int:
    """Those of them that train."""
    return 1 + (ppo.value_model == "separate")


def _roles(ppo: PPOSection) -> str:
    reward = ["reward model"] if ppo.uses_reward_model else []
    value = ["value model"] if ppo.value_model == "separate" else []
    return ", ".join(["policy", "reference", *reward, *value])
