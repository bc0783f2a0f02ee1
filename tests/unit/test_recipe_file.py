from __future__ import annotations

from pathlib import Path

import pytest

from alignflow.errors import RecipeError
from alignflow.recipe import Recipe
from alignflow.recipe.file import load_recipe

ROOT = Path(__file__).parents[2]
GOOD = """\
name: small
base_model: builtin:freight-base
data:
  sft: builtin:freight-sft
sft:
  learning_rate: 1e-3
"""


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(tmp_path, text), overrides)
    return caught.value.message


@pytest.mark.parametrize(
    "path", sorted((ROOT / "deployments/recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_recipe_loads(path: Path) -> None:
    loaded = load_recipe(path)
    assert loaded.name == path.stem
    assert Recipe.model_validate_json(loaded.model_dump_json()) == loaded


def test_a_rate_in_scientific_notation_is_a_number_and_no_is_a_word(tmp_path: Path) -> None:
    text = GOOD.replace("1e-3", "5e-6") + "tuning: {init_adapter: no}\n"
    loaded = load_recipe(recipe(tmp_path, text))
    assert loaded.sft is not None
    assert loaded.sft.learning_rate == 5e-6
    assert loaded.tuning.init_adapter == "no"


def test_sections_that_contradict_each_other_in_several_ways_are_all_named(tmp_path: Path) -> None:
    text = GOOD.replace(
        "  sft: builtin:freight-sft\n", "  evaluation: builtin:freight-evaluation\n"
    )
    lines = refusal(
        tmp_path, text + "reward: {}\nppo: {}\nmerge: null\ntracking: {upload: merged}\n"
    )
    for expected in (
        "recipe: there is a ppo section but method is none",
        "recipe: there is an sft section but data.sft is empty",
        "recipe: reward and alignment train on preferences but data.preferences is empty",
        "recipe: tracking.upload is merged but merge is off",
    ):
        assert expected in lines
    assert len(lines.splitlines()) == 4 and all(
        "recipe.yaml:" in line for line in lines.splitlines()
    )


def test_every_problem_is_named_with_its_line_its_value_and_what_to_do(tmp_path: Path) -> None:
    message = refusal(
        tmp_path, GOOD + "seeed: 3\ntuning:\n  rank: 0\n  alfa: 3\nmethod: dqo\ndpo: {beta: big}\n"
    )
    path = tmp_path / "recipe.yaml"
    assert f"{path}:7: seeed: no such field; did you mean seed?" in message
    assert f"{path}:9: tuning.rank is 0: input should be greater than or equal to 1." in message
    assert f"{path}:10: tuning.alfa: no such field; did you mean alpha?" in message
    assert f"{path}:11: method is 'dqo'" in message
    assert f"{path}:12: dpo.beta is 'big'" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("- a\n", "a recipe is a mapping"),
        ("name: a\nname: b\n", ":2: name stands twice, first in line 1"),
        ("name: &x a\nbase_model: *x\n", "anchors and aliases"),
        ("name: [a\n", "line 2"),
        (f"name: {'[' * 30}{']' * 30}\n", "nested too deeply"),
        (GOOD + "method: dpo\n", "method is dpo but there is no dpo section"),
        (GOOD + "dpo: {}\n", "there is a dpo section but method is none"),
        (GOOD + "tuning: {target_modules: [lm_head]}\n", "names lm_head"),
        (GOOD.replace("sft: builtin:freight-sft", "sft: []"), "data.sft is empty"),
        (GOOD + "x: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
    ],
)
def test_what_reads_otherwise_than_it_looks_is_refused(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in refusal(tmp_path, text)


def test_a_recipe_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_file_too_large_to_be_a_recipe_is_not_parsed(tmp_path: Path) -> None:
    assert "at most" in refusal(tmp_path, "#" * 300_000)


def test_overrides_reach_any_depth_and_are_typed(tmp_path: Path) -> None:
    path = recipe(tmp_path, GOOD)
    loaded = load_recipe(path, ["sft.learning_rate=2e-4", "tuning.rank=8", "merge=null", "seed=7"])
    assert loaded.sft is not None
    assert (loaded.sft.learning_rate, loaded.tuning.rank, loaded.merge, loaded.seed) == (
        2e-4,
        8,
        None,
        7,
    )
    assert "write it as path.to.field=value" in refusal(tmp_path, GOOD, "seed")
    assert "sft.learning_rat: no such field" in refusal(tmp_path, GOOD, "sft.learning_rat=1")
