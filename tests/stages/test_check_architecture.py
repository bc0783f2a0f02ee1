"""`check` decides from a config alone what an architecture cannot do, by a toy of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from check_cases import changed, checked, lines, model_copy
from toy_architectures import REAL, real_config
from transformers import AutoConfig

from alignflow.checking import trial
from alignflow.checking.toy_trial import try_out
from alignflow.checking.trial import trial_findings
from alignflow.recipe import Recipe

QUICK = ("llama", "gemma2", "gpt2", "qwen3_next", "falcon_h1", "deepseek_v3", "rwkv")
NO_CLASSIFIER = (
    *("granite", "cohere", "cohere2", "codegen", "gemma4_text", "olmoe", "granitemoe", "glm4_moe"),
    *("kimi_linear", "lfm2", "olmo_hybrid", "mamba", "mamba2", "falcon_mamba", "falcon_h1"),
    *("nemotron_h", "bamba", "recurrent_gemma", "rwkv"),
)
REFUSED: dict[str, set[str]] = {"recurrent_gemma": {"training", "ppo"}, "rwkv": {"ppo"}}
"""What else fails, by Transformers' own code on padded rows."""
UNPACKED = (
    *("bamba", "bloom", "falcon_h1", "falcon_mamba", "gpt_oss", "jamba", "kimi_linear", "lfm2"),
    *("mamba", "mamba2", "minimax", "mpt", "nemotron_h", "olmo_hybrid", "opt", "qwen3_5_text"),
    *("qwen3_next", "recurrent_gemma", "rwkv", "zamba2"),
)


def config_in(directory: Path, config: Any, **fields: Any) -> Path:
    """A directory with a config and no weights."""
    directory.mkdir(parents=True)
    values = {**config.to_dict(), **fields}
    (directory / "config.json").write_text(json.dumps(values, default=str))
    return directory


def recipe(**fields: Any) -> Recipe:
    return Recipe.model_validate(changed(**fields))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.models) for n in REAL],
)
def test_what_an_architecture_cannot_do_is_known_by_name(name: str, tmp_path: Path) -> None:
    directory = config_in(tmp_path / name, real_config(name))
    answer = try_out({"directory": str(directory), "attention": "auto"})
    expected = REFUSED.get(name, set()) | ({"reward"} if name in NO_CLASSIFIER else set())
    assert set(answer["failed"]) == expected
    assert (answer["packing"] == "off") == (name in UNPACKED)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_a_model_is_refused_from_its_config_and_asked_once(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = config_in(tmp_path / "model", real_config("recurrent_gemma"))
    started = time.monotonic()
    [found] = trial_findings(recipe(), directory, home)
    assert (found.level, found.exit_code) == ("error", 64)
    assert "recurrent_gemma cannot be used: training: the loss of a padded batch" in found.text
    assert time.monotonic() - started < 90  # ten seconds on a free core
    monkeypatch.setattr(trial, "run_limited", None)
    assert trial_findings(recipe(), directory, home) == [found]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial without its child, whose start takes ten seconds."""
    monkeypatch.setattr(trial, "run_limited", lambda _, payload, **limits: try_out(payload))


@pytest.mark.usefixtures("in_this_process")
def test_what_the_recipe_does_not_ask_refuses_nothing(tmp_path: Path, home: Path) -> None:
    directory = config_in(tmp_path / "model", real_config("falcon_h1"))
    assert trial_findings(recipe(), directory, home) == []
    [found] = trial_findings(recipe(reward={"max_length": 64}), directory, home)
    assert "reward: Transformers has no classifier of type falcon_h1" in found.text


@pytest.mark.usefixtures("in_this_process")
def test_attention_that_is_not_there_is_refused(tmp_path: Path, home: Path) -> None:
    directory = config_in(tmp_path / "model", real_config("gpt_oss"))
    [found] = trial_findings(recipe(compute__attention="sdpa"), directory, home)
    assert "attention: ValueError: GptOss" in found.text
    assert "Leave compute.attention out" in found.text


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("llama", {"hidden_act": "no_such"}, "no_such"),
        ("blt", {}, "parameters are left"),
    ],
)
def test_where_no_toy_can_be_made_nothing_is_refused(
    tmp_path: Path, home: Path, kind: str, fields: dict[str, Any], reason: str
) -> None:
    directory = config_in(tmp_path / "model", AutoConfig.for_model(kind), **fields)
    [found] = trial_findings(recipe(), directory, home)
    assert found.level == "warning"
    assert "could not be tried at toy size" in found.text and reason in found.text


@pytest.mark.usefixtures("in_this_process")
def test_a_model_of_several_kinds_of_input_is_refused_by_name(tmp_path: Path, home: Path) -> None:
    directory = config_in(tmp_path / "model", AutoConfig.for_model("qwen2_5_vl"))
    [found] = trial_findings(recipe(), directory, home)
    assert "no language model for text alone of type qwen2_5_vl" in found.text


def test_a_check_of_the_embedded_model_starts_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "run_limited", None)
    for base in ("builtin:freight-base", str(model_copy(tmp_path))):
        assert "toy" not in lines(checked(tmp_path, base_model=base), "warning")
