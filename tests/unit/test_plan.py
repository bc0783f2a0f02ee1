"""Which changes of a recipe change which stage keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_recipe

from alignflow.pipeline.plan import stage_spec
from alignflow.recipe import Recipe

HOME = Path("/home/alignflow")


def prepare_key(recipe: Recipe, home: Path = HOME) -> str:
    return stage_spec(recipe, "prepare", home, {}).key


@pytest.mark.parametrize(
    "sections",
    [
        {"sft": {"batch_size": 8, "learning_rate": 1e-3}},
        {"dpo": {"beta": 0.5}},
        {"tuning": {"rank": 64}},
        {"compute": {"threads": 1, "retries": 0}},
        {"tracking": {"experiment": "elsewhere"}},
        {"name": "renamed"},
    ],
)
def test_what_does_not_concern_the_data_keeps_its_key(sections: dict[str, Any]) -> None:
    assert prepare_key(fake_recipe(**sections)) == prepare_key(fake_recipe())


@pytest.mark.parametrize(
    "sections",
    [
        {"seed": 1},
        {"sft": {"max_length": 64}},
        {"evaluation": {"max_examples": 8}},
        {"base_model": {"source": "builtin:freight-base", "chat_template": __file__}},
    ],
)
def test_what_concerns_the_data_changes_its_key(sections: dict[str, Any]) -> None:
    assert prepare_key(fake_recipe(**sections)) != prepare_key(fake_recipe())


def test_the_home_is_not_part_of_a_key() -> None:
    assert prepare_key(fake_recipe(), Path("/elsewhere")) == prepare_key(fake_recipe())


def test_sources_enter_by_digest_and_their_paths_do_not() -> None:
    spec = stage_spec(fake_recipe(), "prepare", HOME, {})
    assert set(spec.params["sources"]) == {
        f"builtin:freight-{name}" for name in ("sft", "preferences", "evaluation")
    }
    assert spec.model_copy(update={"paths": {}}).key == spec.key
