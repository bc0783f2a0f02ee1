"""The real stages, end to end, on a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_runs import new_home

from alignflow.merging.certificate import read_certificate
from alignflow.recipe import Recipe
from alignflow.stages.spec import RowAccount
from flows.finetune import finetune

SHORT = {"max_steps": 3, "batch_size": 8, "max_length": 192, "learning_rate": 1e-3}
SAMPLED = {
    **SHORT,
    "max_steps": 2,
    "warmup_ratio": 0.0,
    "max_new_tokens": 8,
    "min_reward_accuracy": 0.0,
}
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {**SAMPLED, "rewards": ["execution", "reward_model"], "nll_weight": 0.1},
    "orpo": SHORT,
    "simpo": SHORT,
    "kto": SHORT,
    "rloo": SAMPLED,
    "grpo": {**SAMPLED, "rewards": ["execution", "reward_model"]},
    "rft": {**SAMPLED, "max_new_tokens": 24, "rewards": ["execution", "reward_model"]},
    "distill": {name: value for name, value in SAMPLED.items() if name != "min_reward_accuracy"},
}
MERGED = ("ppo", "rft", "distill")
"""Whose results are merged too: PPO's adapter is one of several on its base."""


def small_recipe(method: str = "dpo", section: dict[str, Any] = SHORT) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "base_model": "builtin:freight-base",
            "data": {
                "sft": "builtin:freight-sft",
                "preferences": {"source": "builtin:freight-preferences", "weight": 0.1},
                "prompts": {"source": "builtin:freight-prompts", "weight": 0.1},
                "evaluation": "builtin:freight-evaluation",
                "general": {"source": "builtin:freight-general", "weight": 0.1},
            },
            "compute": {"threads": 1},
            "sft": SHORT,
            "reward": SHORT,
            "method": method,
            method: section,
            "evaluation": {
                "metrics": ["execution_accuracy"],
                "max_examples": 8,
                "max_new_tokens": 16,
                "bootstrap_resamples": 100,
            },
        }
    )


@pytest.fixture(scope="module")
def report(
    one_forkserver: None,
    prefect_server: str,
    mlflow_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    home = new_home(tmp_path_factory.mktemp("real") / "home", mlflow_store)
    return {**finetune(recipe=small_recipe(), home=home), "home": home}


def test_every_stage_completes_at_its_first_attempt(report: dict[str, Any]) -> None:
    assert report["status"] == "completed"
    assert [entry["stage"] for entry in report["stages"]] == small_recipe().stages
    assert {(entry["state"], entry["attempts"]) for entry in report["stages"]} == {("completed", 1)}


def test_every_row_is_accounted_for(report: dict[str, Any]) -> None:
    for entry in report["stages"]:
        if rows := entry["rows"]:
            assert RowAccount.model_validate(rows).balanced, entry["stage"]


def test_each_model_is_judged(report: dict[str, Any]) -> None:
    assert set(report["evaluation"]) == {"base", "sft", "aligned", "merged"}
    assert all("accuracy" in metrics for metrics in report["evaluation"].values())


def test_the_merged_model_loads_without_alignflow_or_peft(report: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = report["merged_model"]
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    batch = tokenizer("How many shipments?", return_tensors="pt")
    logits = model(input_ids=batch["input_ids"]).logits
    assert logits.isfinite().all()
    assert "lora" not in " ".join(model.state_dict())


def test_the_certificate_passed(report: dict[str, Any]) -> None:
    certificate = json.loads((Path(report["merged_model"]) / "merge_certificate.json").read_text())
    assert certificate["status"] == "passed"


def test_what_the_stages_resolved_is_in_mlflow_on_the_stage_and_on_the_parent(
    report: dict[str, Any],
) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{report['home'] / 'mlflow.db'}")
    sft = next(entry for entry in report["stages"] if entry["stage"] == "sft")["mlflow_run_id"]
    for run_id in (sft, report["mlflow"]["run_id"]):
        params = client.get_run(run_id).data.params
        assert params["lora_target_modules"] == "all-linear"
        assert params["lora_target_modules_resolved"] == (
            "down_proj,gate_proj,k_proj,o_proj,q_proj,up_proj,v_proj"
        )
        assert int(params["trainable_params"]) < int(params["total_params"])
        assert params["lora_scaling"] == "2.0"


@pytest.mark.proof
@pytest.mark.parametrize("method", METHODS)
def test_every_other_method_aligns_what_sft_left_and_is_judged(
    report: dict[str, Any], method: str
) -> None:
    teacher = {"teacher": report["merged_model"]} if method == "distill" else {}
    recipe = small_recipe(method, {**METHODS[method], **teacher})
    merges = method in MERGED
    if not merges:
        recipe = recipe.model_copy(update={"merge": None})
    other = finetune(recipe=recipe, home=report["home"])
    states = {entry["stage"]: entry["state"] for entry in other["stages"]}
    assert other["status"] == "completed"
    assert {stage for stage, state in states.items() if state == "cached"} >= {"sft", "reward"}
    assert states[method] == states["evaluate"] == "completed"
    assert ("merge" in states) == merges
    rows = next(entry["rows"] for entry in other["stages"] if entry["stage"] == method)
    assert rows["trained"] and RowAccount.model_validate(rows).balanced
    judged = other["evaluation"]
    assert judged["aligned"]["perplexity_general"] != judged["sft"]["perplexity_general"]
    if merges:
        certificate = read_certificate(Path(other["merged_model"]))
        assert certificate is not None and certificate.status == "passed"
