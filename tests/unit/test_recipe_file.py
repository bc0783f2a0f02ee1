from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError as SchemaError
from jsonschema import validate

from alignflow.errors import RecipeError
from alignflow.recipe import SCHEMA_FILE, Recipe
from alignflow.recipe.file import _Loader, _section_in, load_recipe
from alignflow.recipe.nicknames import FIELDS

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "deployments/recipes").glob("*.yaml"))
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


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
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


def test_a_recipe_without_a_name_has_its_files(tmp_path: Path) -> None:
    path = tmp_path / "My first_Try.v2.yaml"
    path.write_text("base_model: builtin:freight-base\ndata: {sft: builtin:freight-sft}\n")
    assert load_recipe(path).name == "my-first-try.v2"
    assert load_recipe(path, ["name=other"]).name == "other"


@pytest.mark.parametrize(
    ("fields", "trains"),
    [
        ({}, ["sft"]),
        ({"method": "dpo", "dpo": {}}, ["sft", "dpo"]),
        ({"method": "dpo", "dpo": {}, "sft": None}, ["dpo"]),
        ({"method": "orpo", "orpo": {}}, ["orpo"]),
        ({"method": "orpo", "orpo": {}, "sft": {}}, ["sft", "orpo"]),
    ],
)
def test_demonstrations_are_trained_on_where_no_section_says_otherwise(
    fields: dict[str, Any], trains: list[str]
) -> None:
    data = {"sft": "builtin:freight-sft", "preferences": "builtin:freight-preferences"}
    base = {"name": "a", "base_model": "builtin:freight-base", "data": data}
    recipe = Recipe.model_validate(base | fields)
    assert [*recipe.training_sections] == trains
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_every_other_name_means_a_field_that_there_is() -> None:
    for theirs, ours in FIELDS.items():
        section: Any = Recipe
        for part in ours.split("."):
            assert section is not None and part in section.model_fields, (theirs, ours)
            section = _section_in(section.model_fields[part].annotation)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"sft": {"lr": 1e-4}}, "sft.lr: no such field; did you mean learning_rate?"),
        ({"dpo": {"epochs": 2}}, "dpo.epochs: no such field; did you mean num_train_epochs?"),
        ({"lora_r": 8}, "lora_r: no such field; did you mean tuning.rank?"),
        (
            {"learning_rate": 8},
            "learning_rate: no such field; did you mean pretrain.learning_rate?",
        ),
        ({"sft": {"use_dora": True}}, "sft.use_dora: no such field; did you mean tuning.use_dora?"),
        ({"tuning": {"seed": 1}}, "tuning.seed: no such field; did you mean seed?"),
        (
            {"sft": {"learnin_rate": 1}},
            "sft.learnin_rate: no such field; did you mean learning_rate?",
        ),
    ],
)
def test_other_trainers_words_are_understood(written: dict[str, Any], expected: str) -> None:
    base = {"name": "a", "base_model": "builtin:freight-base", "data": {"sft": "x.jsonl"}}
    with pytest.raises(RecipeError, match=re.escape(expected)):
        load_recipe(base | written)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_editors_take_every_shipped_recipe(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == SCHEMA_FILE
    validate(yaml.load(path.read_text(), Loader=_Loader), json.loads(SCHEMA_FILE.read_text()))


def test_editors_see_what_is_wrong() -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    good = yaml.load(SHIPPED[0].read_text(), Loader=_Loader)
    for wrong in ({"lr": 1}, {"seed": "x"}, {"tuning": {"rank": 0}}, {"data": {"sfd": "x"}}):
        with pytest.raises(SchemaError):
            validate(good | wrong, schema)
