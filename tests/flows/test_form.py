"""The form of the deployed flows: a recipe file and overrides first, the whole recipe behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_recipe
from prefect import Flow

from alignflow.errors import RecipeError
from flows.finetune import finetune
from flows.ingest import ingest
from flows.retrain import retrain
from tasks.form import recipe_of

FILE = """name: written
base_model: builtin:freight-base
data: {sft: builtin:freight-sft, preferences: builtin:freight-preferences}
method: dpo
dpo: {beta: 0.1}
"""


@pytest.mark.parametrize("flow", [finetune, ingest, retrain])
def test_a_recipe_file_and_overrides_come_first_and_the_whole_form_last(
    flow: Flow[..., Any],
) -> None:
    fields = flow.parameters.properties
    order = sorted(fields, key=lambda name: fields[name]["position"])
    assert order[:2] == ["recipe_file", "overrides"] and order[-1] == "recipe"
    assert flow.parameters.required == []
    assert all(field.get("description") for field in fields.values())


def test_overrides_are_set_on_top_of_a_file_or_of_the_form(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(FILE)
    recipe = recipe_of(str(tmp_path / "recipe.yaml"), ["dpo.beta=0.3"], fake_recipe())
    assert (recipe.name, recipe.section_of("dpo").beta) == ("written", 0.3)  # type: ignore[union-attr]
    form = fake_recipe()
    assert recipe_of("", [], form) is form
    recipe = recipe_of("", ["dpo.beta=0.3", "seed=7"], form)
    assert (recipe.name, recipe.seed) == ("fake", 7)
    assert recipe.section_of("dpo").beta == 0.3  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match="There is no recipe"):
        recipe_of("", ["seed=7"], None)
    with pytest.raises(RecipeError, match=r"dpo\.betta"):
        recipe_of("", ["dpo.betta=0.3"], form)


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is one of a deployment."""
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "3f1c8f8e-0000-4000-8000-000000000000")


RELATIVE = [
    ({"data": {"sft": "rows.jsonl", "preferences": "builtin:freight-preferences"}}, "data.sft"),
    ({"base_model": "./models/base"}, "base_model.source"),
    ({"base_model": "gguf:base.gguf"}, "base_model.source"),
    ({"evaluation": {"metrics": ["my/metric.py"]}}, "evaluation.metrics"),
    (
        {"evaluation": {"metrics": [{"execution_accuracy": {"database": "company.sqlite"}}]}},
        "evaluation.metrics.*.database",
    ),
]


@pytest.mark.parametrize(("fields", "named"), RELATIVE)
def test_a_deployed_run_refuses_relative_paths_and_says_why(
    fields: dict[str, Any], named: str, deployed: None
) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe_of("", [], fake_recipe(**fields))
    assert named in str(refused.value) and "temporary directory" in str(refused.value)


def test_a_deployed_run_refuses_a_relative_recipe_file_and_takes_names_that_are_no_paths(
    deployed: None, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"recipe_file: my\.yaml: a relative path"):
        recipe_of("my.yaml", [], None)
    (tmp_path / "recipe.yaml").write_text(FILE)
    assert recipe_of(str(tmp_path / "recipe.yaml"), [], None).name == "written"
    hub = fake_recipe(base_model="Qwen/Qwen2.5-0.5B", evaluation={"metrics": ["exact_match"]})
    assert recipe_of("", [], hub) is hub
    absolute = fake_recipe(
        data={"sft": "/data/rows.jsonl", "preferences": "builtin:freight-preferences"}
    )
    assert recipe_of("", [], absolute) is absolute
