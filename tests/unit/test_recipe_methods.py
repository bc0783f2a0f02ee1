"""Recipes of the alignment methods and of continued pre-training: their stages, inputs, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from check_cases import changed
from pydantic import ValidationError

from alignflow.checking.findings import exit_code
from alignflow.checking.rules import recipe_findings
from alignflow.checking.trainer_arguments import known_arguments
from alignflow.data.lengths import limits_of, within_context
from alignflow.pipeline.plan import stage_spec
from alignflow.pipeline.report import key_figure
from alignflow.recipe import METHODS, STAGES, TRAINING_STAGES, Recipe
from alignflow.stages.artifacts import Artifact, publish, work_directory
from alignflow.stages.spec import StageResult, StageSpec

PROMPTS: dict[str, Any] = {"data__prompts": "builtin:freight-prompts"}
PRETRAIN: dict[str, Any] = {
    "data__pretrain": "builtin:freight-domain",
    "data__replay": "builtin:freight-replay",
    "pretrain": {},
}


def recipe(**fields: Any) -> Recipe:
    return Recipe.model_validate(changed(**fields))


def by(method: str, section: dict[str, Any] | None = None, **fields: Any) -> Recipe:
    return recipe(method=method, dpo=None, **{method: section or {}}, **fields)


def test_every_method_has_a_section_a_stage_and_a_class_of_arguments() -> None:
    for method, row in METHODS.items():
        assert method in Recipe.model_fields
        assert STAGES[method].entry == f"alignflow.training.methods.{method}:run"
        assert row.arguments is None or known_arguments(method) > {"output_dir"}
    assert {"pretrain", "sft", "reward"} <= set(TRAINING_STAGES)


@pytest.mark.parametrize(
    ("made", "stages"),
    [
        (by("orpo", sft=None), ["prepare", "orpo", "evaluate", "merge"]),
        (by("simpo"), ["prepare", "sft", "simpo", "evaluate", "merge"]),
        (by("kto"), ["prepare", "sft", "kto", "evaluate", "merge"]),
        (
            by("grpo", {"rewards": ["execution"]}, **PROMPTS, data__preferences=None),
            ["prepare", "sft", "grpo", "evaluate", "merge"],
        ),
        (
            by("rloo", reward={}, **PRETRAIN),
            ["prepare", "pretrain", "sft", "reward", "rloo", "evaluate", "merge"],
        ),
    ],
    ids=lambda value: value.method if isinstance(value, Recipe) else "",
)
def test_a_method_runs_the_stages_it_needs(made: Recipe, stages: list[str]) -> None:
    assert made.stages == stages


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"method": "orpo", "dpo": None, "orpo": {}, "data__preferences": None},
            "data.preferences",
        ),
        ({"method": "rloo", "dpo": None, "rloo": {}}, "rloo.rewards names the reward model"),
        (
            {"method": "grpo", "dpo": None, "grpo": {"batch_size": 10, "num_generations": 4}},
            "10 rollouts, which num_generations 4 does not divide",
        ),
        ({"pretrain": {}}, "data.pretrain is empty"),
        ({**PRETRAIN, "data__replay": None}, "replay_share is 0.25 but data.replay is empty"),
        ({**PRETRAIN, "tuning__init_adapter": "x"}, "which pretrain changes"),
        ({**PRETRAIN, "tuning__initialization": "eva"}, "pretrain packs its rows"),
        (
            {**PRETRAIN, "pretrain": {"tuning": {"init_adapter": "x"}}},
            "this stage makes a new adapter",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**fields)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (by("orpo", {"beta": 2}), "orpo.beta: is 2"),
        (by("simpo", sft=None), "simpo: starts from the base model"),
        (by("simpo", {"beta": 0.1}), "simpo.beta: is 0.1"),
        (recipe(dpo__loss_type=["aot", "sft"]), "aot compares what a micro-batch has in order"),
    ],
    ids=["orpo", "simpo", "simpo-beta", "aot"],
)
def test_a_departure_from_the_rules_of_a_method_is_advice(made: Recipe, expected: str) -> None:
    findings = recipe_findings(made, small_model=True)
    assert expected in "\n".join(finding.line for finding in findings if finding.level == "advice")
    assert exit_code(findings) == 0


def test_a_row_is_kept_if_any_stage_that_reads_it_takes_it() -> None:
    made = recipe(
        sft={"max_length": 32}, reward={"max_length": 96}, dpo={"max_length": 64}, method="dpo"
    )
    limits = limits_of(made)
    assert limits == {"sft": 32, "preferences": 96, "ratings": None, "prompts": None}
    assert within_context(limits, 80) == {**dict.fromkeys(limits, 80), "sft": 32}


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_pairs_whose_chosen_responses_ppo_shows_enter_its_key(
    weight: float, tmp_path: Path
) -> None:
    """Else changed preferences would be met by a cached stage."""
    section = {"rewards": ["execution"], "nll_weight": weight, "max_length": 777}
    made = by("ppo", section, reward=None, sft=None, **PROMPTS)
    assert limits_of(made)["preferences"] == (777 if weight else None)
    files = ["base_model.json", "tokenizer/x", "prompts/x"]
    keys = {
        stage_spec(
            made,
            "ppo",
            tmp_path,
            {"prepare": finished(tmp_path / pairs, "prepare", [*files, pairs])},
        ).key
        for pairs in ("preferences/a", "preferences/b")
    }
    assert len(keys) == (2 if weight else 1)


def finished(home: Path, stage: str, files: list[str]) -> Artifact:
    spec = StageSpec(stage=stage, home=str(home), params={}, seed=0)
    for name in files:
        path = work_directory(home, stage, spec.key) / "output" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{stage} {name}")
    return publish(spec, StageResult(), 0.0, 1)


def test_all_stages_after_pretraining_take_its_model_as_their_base(tmp_path: Path) -> None:
    parts = ["sft", "preferences", "prompts", "pretrain", "replay", "evaluation", "general"]
    base = ["base_model.json", "tokenizer/tokenizer.json"]
    before = {
        "prepare": finished(tmp_path, "prepare", [*base, *(f"{part}/x" for part in parts)]),
        "sft": finished(tmp_path, "sft", ["adapter/x"]),
        "reward": finished(tmp_path, "reward", ["adapter/x"]),
        "rloo": finished(tmp_path, "rloo", ["adapter/x"]),
    }
    after = {**before, "pretrain": finished(tmp_path, "pretrain", ["base_model.json", "model/x"])}
    made = by("rloo", reward={}, **PRETRAIN, **PROMPTS)
    assert "pretrain" not in stage_spec(made, "pretrain", tmp_path, after).inputs
    for stage in ("sft", "reward", "rloo", "evaluate", "merge"):
        with_it = stage_spec(made, stage, tmp_path, after)
        without = stage_spec(made, stage, tmp_path, before)
        assert with_it.inputs["pretrain"].key == after["pretrain"].key
        assert with_it.key != without.key


def test_orpo_reads_demonstrations_only_where_no_sft_stage_does(tmp_path: Path) -> None:
    base = ["base_model.json", "tokenizer/tokenizer.json", "sft/x", "preferences/x"]
    prepared = {"prepare": finished(tmp_path, "prepare", base)}
    alone = stage_spec(by("orpo", sft=None), "orpo", tmp_path, prepared)
    after = stage_spec(by("orpo"), "orpo", tmp_path, prepared)
    assert alone.inputs["data"].digest != after.inputs["data"].digest


def test_the_report_says_what_pretraining_and_orpo_changed() -> None:
    figures = {"perplexity_domain_before": 495.0, "perplexity_domain": 28.3}
    stage = {"stage": "pretrain", "metrics": figures, "state": "completed"}
    assert key_figure(stage, {"evaluation": {}}) == "perplexity_domain 495 → 28.3"
    evaluation = {"base": {"accuracy": 0.0}, "aligned": {"accuracy": 0.8}}
    stage = {"stage": "orpo", "metrics": {}, "state": "completed"}
    assert key_figure(stage, {"evaluation": evaluation}) == "accuracy 0.0% → 80.0%"
