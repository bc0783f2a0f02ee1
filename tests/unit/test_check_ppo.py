"""What a recipe with method ppo may say, what is wrong with it, and what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignflow.checking.judging_rules import judging_findings
from alignflow.checking.ppo_rules import (
    model_count,
    ppo_findings,
    sampling_findings,
    trained_count,
)
from alignflow.recipe import PPOSection, Recipe
from alignflow.stages.spec import StageResult
from alignflow.training.reward_gate import weakness

FREIGHT = {
    "name": "ppo",
    "base_model": "builtin:freight-base",
    "data": {"sft": "builtin:freight-sft", "preferences": "builtin:freight-preferences"},
    "sft": {},
    "reward": {},
    "method": "ppo",
    "ppo": {"max_length": 192, "max_new_tokens": 40},
}


def recipe(ppo: dict[str, Any] | None = None, **fields: Any) -> Recipe:
    section = {**FREIGHT["ppo"], **(ppo or {})}  # type: ignore[dict-item]
    return Recipe.model_validate({**FREIGHT, "ppo": section, **fields})


def with_prompts(**data: Any) -> dict[str, Any]:
    return {"sft": "builtin:freight-sft", "prompts": "builtin:freight-prompts", **data}


def said(found: Recipe) -> str:
    findings = [*judging_findings(found), *sampling_findings(found), *ppo_findings(found)]
    return "\n".join(f"{finding.level} {finding.line}" for finding in findings)


def test_a_plain_recipe_gets_no_finding() -> None:
    assert said(recipe()) == ""


@pytest.mark.parametrize(
    ("ppo", "fields", "expected"),
    [
        ({"trainer_args": {"x": 1}}, {}, "error ppo.trainer_args: has no effect"),
        ({"max_new_tokens": 192}, {}, "error ppo.max_new_tokens: is 192 of max_length 192"),
        ({"rewards": ["execution"]}, {}, "error ppo.rewards: names execution, which compares"),
        ({"rewards": ["nowhere.py:f"]}, {}, "error ppo.rewards: 'nowhere.py:f' is no function"),
        (
            {"watch": {"metric": "exact_mach"}},
            {"data": {**with_prompts(), "preferences": "builtin:freight-preferences"}},
            "error ppo.watch.metric: 'exact_mach' is neither a metric",
        ),
        (
            {"watch": {"metric": "preference_accuracy"}},
            {"data": {**with_prompts(), "preferences": "builtin:freight-preferences"}},
            "error ppo.watch.metric: 'preference_accuracy' is neither a metric of responses",
        ),
        ({}, {"tuning": {"mode": "full"}}, "note tuning.mode: is full: PPO holds 4 whole models"),
        ({}, {"tuning": {"dropout": 0.1}}, "advice tuning.dropout: is off in PPO"),
        ({"kl_coef": 0}, {}, "advice ppo.kl_coef: is 0, so nothing keeps"),
        ({"num_ppo_epochs": 8}, {}, "advice ppo.num_ppo_epochs: is 8"),
        (
            {"rewards": ["execution"]},
            {"data": with_prompts(), "reward": None},
            "advice ppo.watch: is not set",
        ),
    ],
)
def test_findings(ppo: dict[str, Any], fields: dict[str, Any], expected: str) -> None:
    assert expected in said(recipe(ppo, **fields))


@pytest.mark.parametrize(
    ("ppo", "fields", "expected"),
    [
        ({}, {"reward": None}, "ppo.rewards names the reward model; add a reward section"),
        ({"on_weak_reward": "dpo"}, {}, "on_weak_reward is dpo but there is no dpo section"),
        ({}, {"dpo": {}}, "there is a dpo section but method is ppo"),
        ({"watch": {"metric": "exact_match"}}, {}, "data.prompts is empty"),
        (
            {"rewards": ["execution"], "nll_weight": 0.1},
            {"data": with_prompts(), "reward": None},
            "data.preferences is empty",
        ),
        ({"rewards": ["model"]}, {}, "'model' is no source of rewards"),
        ({"rewards": ["execution", "execution"]}, {}, "names a source twice"),
    ],
)
def test_refusals(ppo: dict[str, Any], fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        recipe(ppo, **fields)


def test_own_prompts_and_rewards_need_neither_preferences_nor_a_reward_model() -> None:
    found = recipe({"rewards": ["execution"]}, data=with_prompts(), reward=None)
    assert found.stages == ["prepare", "sft", "ppo", "merge"]
    assert not found.needs_preferences


@pytest.mark.parametrize(
    ("ppo", "models", "trained"),
    [
        ({}, 4, 2),
        ({"value_model": "policy"}, 3, 1),
        ({"rewards": ["execution"]}, 3, 2),
        ({"rewards": ["execution"], "value_model": "policy"}, 2, 1),
    ],
)
def test_models_are_counted_as_they_are_held(
    ppo: dict[str, Any], models: int, trained: int
) -> None:
    section = PPOSection.model_validate(ppo)
    assert (model_count(section), trained_count(section)) == (models, trained)


@pytest.mark.parametrize(
    ("accuracy", "interval", "expected"),
    [
        (0.7, [0.6, 0.8], None),
        (0.54, [0.51, 0.57], "ranks 54.0% of held-out pairs rightly"),
        (0.7, [0.49, 0.9], "interval 49.0% to 90.0%"),
        (None, None, "was not measured"),
    ],
)
def test_a_weak_reward_model_is_told_by_its_accuracy_and_its_interval(
    accuracy: float | None, interval: list[float] | None, expected: str | None
) -> None:
    result = StageResult(
        metrics={"preference_accuracy": accuracy},
        details={"preference_accuracy_interval": interval},
    )
    found = weakness(result, PPOSection())
    assert (found is None) == (expected is None)
    assert expected is None or expected in str(found)


def test_a_fallback_recipe_is_the_recipe_with_dpo(tmp_path: Path) -> None:
    found = recipe({"on_weak_reward": "dpo"}, dpo={})
    assert found.fallback == "dpo"
    assert found.stages == ["prepare", "sft", "reward", "ppo", "merge"]
    assert found.falling_back.stages == ["prepare", "sft", "reward", "dpo", "merge"]
    assert set(found.training_sections) == {"sft", "reward", "ppo", "dpo"}
