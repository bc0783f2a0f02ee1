"""What a retrain decides from what the ledger says, and what it continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_recipe

from alignflow.errors import RecipeError
from alignflow.ledger import Generation
from alignflow.lineage.retraining import (
    from_scratch,
    lineage_artifacts,
    next_step,
    replayed,
    retrain_recipe,
)
from alignflow.recipe import DataSource, Recipe, RetrainSection, require_retrain
from alignflow.recipe.pretraining import PretrainSection

SECTION = RetrainSection(min_new_pairs=100)
FOUNDER = Generation("m", 0, "f", {"sft": "/a/sft", "merge": "/a/m0"}, None, "", "now")
SECOND = FOUNDER._replace(
    generation=2,
    digest="s",
    artifacts={"sft": "/a/sft", "dpo": "/a/dpo2", "merge": "/a/m2", "reward": "/a/r"},
)


def recipe(**retrain: Any) -> Recipe:
    return fake_recipe(retrain={**SECTION.model_dump(exclude_defaults=True), **retrain})


def test_too_few_new_rows_end_the_run_with_both_numbers() -> None:
    step = next_step(SECTION, waiting=400, new=99)
    assert step.action == "wait"
    assert "99 new pairs" in step.text and "min_new_pairs is 100" in step.text


def test_rows_of_a_rejected_snapshot_join_the_next_but_do_not_call_for_it() -> None:
    assert next_step(SECTION, waiting=400, new=0).action == "wait"
    freeze = next_step(SECTION, waiting=500, new=100)
    assert freeze.action == "freeze" and "100 new of 500 waiting" in freeze.text


def test_an_undecided_snapshot_is_resumed_however_few_rows_are_new() -> None:
    step = next_step(SECTION, waiting=0, new=0, undecided="v3-abc")
    assert (step.action, step.snapshot) == ("resume", "v3-abc")


@pytest.mark.parametrize(
    ("new", "consumed", "share", "expected"),
    [(80, 1000, 0.2, 20), (80, 5, 0.2, 5), (80, 1000, 0.0, 0), (100, 1000, 0.5, 100)],
)
def test_replayed_rows_make_up_their_share_of_all(
    new: int, consumed: int, share: float, expected: int
) -> None:
    assert replayed(new, consumed, RetrainSection(replay_share=share)) == expected


def test_from_the_base_every_consumed_row_is_used_again() -> None:
    assert replayed(10, 1000, RetrainSection(start_from="base")) == 1000


def test_a_continuation_has_no_sft_stage_and_trains_on_the_snapshot_alone() -> None:
    found = retrain_recipe(recipe(), "v3-abc", SECOND)
    assert found.stages == ["prepare", "reward", "dpo", "evaluate", "merge"]
    assert [source.source for source in found.data.preferences] == ["ledger:default@v3-abc"]
    assert found.data.sft == []
    assert Recipe.model_validate_json(found.model_dump_json()) == found


def test_from_scratch_every_stage_runs() -> None:
    for given, champion in ((recipe(), None), (recipe(start_from="base"), SECOND)):
        assert from_scratch(given, champion)
        found = retrain_recipe(given, "v1-abc", champion)
        assert found.stages == ["prepare", "sft", "reward", "dpo", "evaluate", "merge"]
        assert lineage_artifacts(given, champion) == {}


def test_the_policy_continues_the_champion_and_the_reference_stays_the_original_sft_model() -> None:
    assert lineage_artifacts(recipe(), SECOND) == {
        "init": Path("/a/dpo2"),
        "sft": Path("/a/sft"),
    }
    assert lineage_artifacts(recipe(), FOUNDER) == {"sft": Path("/a/sft")}
    assert lineage_artifacts(recipe(reference="champion"), SECOND) == {"sft": Path("/a/dpo2")}


def test_pre_training_is_the_lineages_too() -> None:
    given = recipe(start_from="champion")
    pretrained = SECOND._replace(artifacts={**SECOND.artifacts, "pretrain": "/a/p"})
    assert lineage_artifacts(given, pretrained)["pretrain"] == Path("/a/p")
    pretraining = given.model_copy(update={"pretrain": PretrainSection()})
    assert from_scratch(pretraining, SECOND) and not from_scratch(pretraining, pretrained)
    assert retrain_recipe(pretraining, "v1", pretrained).pretrain is None


def test_another_method_continues_the_same_lineage() -> None:
    ppo = SECOND._replace(generation=3, artifacts={"sft": "/a/sft", "ppo": "/a/ppo3"})
    assert lineage_artifacts(recipe(), ppo)["init"] == Path("/a/ppo3")


def test_the_gate_gets_the_figures_that_its_guardrails_need() -> None:
    narrow = recipe(gate={"max_kl": 5.0}).model_copy(
        update={"evaluation": recipe().evaluation.model_copy(update={"models": ["aligned"]})}
    )
    assert retrain_recipe(narrow, "v1", SECOND).evaluation.models == ["sft", "aligned"]
    general = narrow.data.model_copy(
        update={"general": [DataSource(source="builtin:freight-general")]}
    )
    with_text = narrow.model_copy(update={"data": general})
    assert retrain_recipe(with_text, "v1", SECOND).evaluation.models == ["base", "sft", "aligned"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"retrain": None}, "no `retrain` section"),
        ({"method": "none", "dpo": None, "retrain": {}}, "train no policy"),
        ({"merge": None, "retrain": {}}, "certificate"),
    ],
)
def test_a_recipe_that_cannot_be_retrained_is_refused_with_what_to_change(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        require_retrain(fake_recipe(**changes))
