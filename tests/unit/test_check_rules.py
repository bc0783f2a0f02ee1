"""Advice from the field's rules, and what a recipe shows to be wrong by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from check_cases import changed

from alignflow.checking.findings import Finding, exit_code, raised
from alignflow.checking.rules import LOSSES, recipe_findings
from alignflow.checking.trainer_arguments import known_arguments
from alignflow.errors import DataError, RecipeError
from alignflow.evaluation.about import OURS, text_metrics
from alignflow.evaluation.metric_modules import load_module
from alignflow.recipe import Recipe
from alignflow.training.engine.reserved import RESERVED


def found(*, small_model: bool = False, **fields: Any) -> list[Finding]:
    return recipe_findings(Recipe.model_validate(changed(**fields)), small_model=small_model)


def texts(findings: list[Finding], level: str) -> str:
    return "\n".join(finding.line for finding in findings if finding.level == level)


def test_a_recipe_by_the_rules_gets_no_advice() -> None:
    assert found(small_model=True) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tuning__alpha": 16}, "tuning.alpha: is 16 at rank 16; the usual 2 * rank is 32"),
        ({"tuning__rank": 2}, "tuning.rank: is 2; format and style need 8 to 16"),
        ({"tuning__rank": 256}, "tuning.rank: is 256; above 128 little is gained"),
        ({"tuning__rank": 64}, "tuning.use_rslora: is off at rank 64"),
        (
            {"tuning": {"mode": "qlora", "target_modules": "attention"}},
            "QLoRA reaches full tuning only with adapters on all-linear",
        ),
        (
            {"tuning": {"rank": 64, "target_modules": "attention-qv"}},
            "tuning.target_modules: is attention-qv at rank 64",
        ),
        ({"tuning__dropout": 0.3}, "tuning.dropout: is 0.3"),
        ({"tuning__adapter_dtype": "bfloat16"}, "updates are rounded by chance"),
        ({"tuning": {"mode": "full", "rank": 8}}, "tuning.rank: has no effect with mode full"),
        (
            {"tuning": {"mode": "full", "rank_pattern": {"q_proj": 8}}},
            "tuning.rank_pattern: has no effect with mode full",
        ),
        ({"tuning__lora_plus_ratio": 64}, "tuning.lora_plus_ratio: is 64; the paper takes 16"),
        (
            {"tuning": {"initialization": "eva", "init_adapter": "somewhere"}},
            "tuning.initialization: is eva, but init_adapter gives the start",
        ),
        ({"tuning__mode": "full"}, "sft.learning_rate: is 0.001 for full tuning"),
        ({"sft__learning_rate": 6e-3}, "sft.learning_rate: is 0.006; adapters of large models"),
        ({"sft__learning_rate": 1e-6}, "sft.learning_rate: is 1e-06, usual for full tuning"),
        ({"dpo__loss_type": ["sigmoid"]}, "dpo.loss_type: is ['sigmoid']: without an sft term"),
        ({"dpo__beta": 2.0}, "dpo.beta: is 2.0"),
        ({"data__evaluation": None}, "data.evaluation: is empty"),
        ({"data__general": None}, "data.general: is empty"),
        ({"data__sft": "trl-lib/Capybara"}, "data.sft.revision: is not set: trl-lib/Capybara"),
        ({"evaluation__metrics": ["json_validity"]}, "json_validity accepts any JSON"),
        (
            {"evaluation__metrics": ["json_validity"], "tuning__rank": 32},
            "tuning.rank: is 32 for a format",
        ),
    ],
)
def test_a_departure_from_the_rules_is_advice_and_no_error(
    fields: dict[str, Any], expected: str
) -> None:
    findings = found(**fields)
    assert expected in texts(findings, "advice")
    assert exit_code(findings) == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"evaluation__metrics": ["exact_macth"]},
            "'exact_macth' is neither a metric of responses",
        ),
        ({"evaluation__metrics": ["exact_macth"]}, "did you mean exact_match?"),
        ({"dpo__loss_type": ["sigmoidal"]}, "TRL has no loss 'sigmoidal'; did you mean sigmoid?"),
        ({"sft__trainer_args": {"seed": 3}}, "sft.trainer_args.seed: is set by the recipe's seed"),
        (
            {"sft__trainer_args": {"neftune_noise_alfa": 3}},
            "sft.trainer_args.neftune_noise_alfa: (here 3) is no argument of SFTConfig. Did you mean "
            "neftune_noise_alpha?",
        ),
        ({"evaluation__json_schema": "nowhere.json"}, "'nowhere.json' cannot be read"),
    ],
)
def test_what_the_recipe_itself_shows_to_be_wrong_is_an_error(
    fields: dict[str, Any], expected: str
) -> None:
    findings = found(**fields)
    assert expected in texts(findings, "error")
    assert exit_code(findings) == 64


@pytest.mark.parametrize("text", ["{", '{"type": "objekt"}'])
def test_a_schema_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(text)
    findings = found(evaluation={"metrics": ["json_validity"], "json_schema": str(path)})
    assert "evaluation.json_schema" in texts(findings, "error")


def test_an_absent_chat_template_is_a_fault_of_the_data() -> None:
    findings = found(base_model={"source": "builtin:freight-base", "chat_template": "no.jinja"})
    assert "base_model.chat_template: 'no.jinja' is no file" in texts(findings, "error")
    assert exit_code(findings) == 65


@pytest.mark.slow
def test_arguments_are_read_from_the_installed_libraries_without_importing_them() -> None:
    from dataclasses import fields

    from trl import DPOConfig

    assert known_arguments("dpo") == {field.name for field in fields(DPOConfig)}
    assert "output_dir" in RESERVED


@pytest.mark.slow
def test_losses_and_metrics_are_those_there_are() -> None:
    import inspect

    from trl.trainer import dpo_trainer

    source = inspect.getsource(dpo_trainer)
    assert [loss for loss in LOSSES if f'loss_type == "{loss}"' not in source] == []
    ours = [path.stem for path in OURS.glob("[a-z]*.py")]
    kinds = {name: {f.dtype for f in load_module(name).features.values()} for name in ours}
    texts = {name for name, kind in kinds.items() if kind == {"string"}}
    assert texts == set(text_metrics())


def test_an_exceptions_field_is_found_in_its_message() -> None:
    assert raised(RecipeError("base_model: 'x' is nothing.")).field == "base_model"
    assert raised(DataError("a b: c")).field == ""
    assert raised(DataError("/some/file.jsonl: cannot be read")).field == ""
