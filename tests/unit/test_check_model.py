"""The base model's files: what is refused, what headers tell, what an estimate says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from check_cases import changed, checked, edit_json, errors, lines, model_copy

from alignflow.builtin import base_model_directory
from alignflow.checking.architecture import read_shape, shape_from_name
from alignflow.checking.checked import preflight
from alignflow.checking.model_files import model_directory, refusals
from alignflow.checking.needs import Needs, need_findings, needs_of
from alignflow.errors import DiskSpaceError, RecipeError
from alignflow.files import digest_directory
from alignflow.models.headers import header_bytes
from alignflow.recipe import ModelSource, Recipe, TuningSection

BASE = base_model_directory("freight-base")


def refused(directory: Path) -> str:
    return "\n".join(finding.line for finding in refusals(directory))


def test_the_embedded_model_is_harmless() -> None:
    assert refusals(BASE) == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a/optimizer.pt", "x.pkl", "model.ckpt"])
def test_files_that_can_run_code_are_refused(tmp_path: Path, name: str) -> None:
    model = model_copy(tmp_path)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"\x80\x04")
    assert f"holds {name}: files of this kind can run code" in refused(model)


def test_a_link_out_of_the_directory_is_refused_and_the_hubs_own_links_are_not(
    tmp_path: Path,
) -> None:
    model = model_copy(tmp_path)
    (model / "extra.json").symlink_to("/etc/hostname")
    assert "extra.json links to" in refused(model)
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "hub" / "blobs" / "1"
    blob.parent.mkdir()
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to(blob)
    assert refusals(snapshot) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "asks for the model's own code"),
        ({"_attn_implementation": "someone/kernel"}, "would download code"),
        ({"text_config": {"attn_implementation_internal": "a/b"}}, "would download code"),
    ],
)
def test_a_config_that_names_code_is_refused(
    tmp_path: Path, fields: dict[str, Any], expected: str
) -> None:
    model = model_copy(tmp_path)
    edit_json(model / "config.json", **fields)
    assert expected in refused(model)


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    model = model_copy(tmp_path)
    (model / "config.json").write_text("[" * 100_000)
    assert "cannot be read as JSON" in refused(model)
    found = checked(tmp_path, base_model=str(model))
    assert found.exit_code == 64


def test_headers_tell_the_shape() -> None:
    shape = read_shape(BASE)
    assert shape.context == 512
    assert sorted(shape.linear) == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert len(shape.linear["q_proj"]) == 4
    assert 0.9e6 < shape.parameters < 1.1e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_dora": True},
        {"rank_pattern": {"down_proj": 32, "layers.0.self_attn.q_proj": 3}},
        {"layers_to_transform": [0, 3], "target_modules": "attention"},
    ],
)
def test_adapter_parameters_are_those_peft_makes(changes: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    from alignflow.models.adapters import new_adapter

    model = AutoModelForCausalLM.from_pretrained(str(BASE), dtype="float32")
    tuning = TuningSection(rank=8, **changes)
    adapted = new_adapter(model, tuning, "CAUSAL_LM")
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert read_shape(BASE).adapter_parameters(tuning) == trainable


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-8B", 8e9),
        ("Qwen/Qwen2.5-72B-Instruct", 72e9),
        ("Qwen/Qwen3-0.6B-Base", 0.6e9),
        ("HuggingFaceTB/SmolLM2-135M", 135e6),
        ("someone/model", None),
    ],
)
def test_a_name_tells_the_size(name: str, parameters: float | None) -> None:
    shape = shape_from_name(name)
    assert (shape.parameters if shape else None) == parameters


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    found = checked(tmp_path, base_model="./nowhere")
    assert found.exit_code == 64
    assert "base_model: './nowhere' is not a model directory" in lines(found, "error")
    found = checked(tmp_path, base_model="builtin:fright-base")
    assert "'fright-base'; there is freight-base" in lines(found, "error")


def test_a_hub_model_is_left_to_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_directory(ModelSource(source="nobody/model-8B"), tmp_path) is None
    found = checked(tmp_path, base_model="nobody/model-8B")
    assert "nobody/model-8B is not on this machine" in lines(found, "note")
    assert found.base_model is not None and found.base_model.from_name


def test_a_hub_model_whose_download_was_cut_off_is_left_to_prepare_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--nobody--cut-8B" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repository, file, revision: str(snapshot / file),
    )
    model = ModelSource(source="nobody/cut-8B")
    assert model_directory(model, tmp_path) is None
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(shards))
    (snapshot / "model-1.safetensors").touch()
    assert model_directory(model, tmp_path) is None
    (snapshot / "model-2.safetensors").touch()
    assert model_directory(model, tmp_path) == snapshot


def test_an_unknown_target_module_is_named_with_those_there_are(tmp_path: Path) -> None:
    found = checked(tmp_path, tuning__target_modules=["q_porj", "v_proj"])
    assert found.exit_code == 64
    message = lines(found, "error")
    assert (
        "tuning.target_modules: the model has no linear layer 'q_porj'; did you mean q_proj?"
        in (message)
    )
    assert "down_proj" in message and "attention-qv" in message


def test_every_error_is_named_at_once(tmp_path: Path) -> None:
    found = checked(
        tmp_path,
        tuning__target_modules="nope",
        data__sft="absent.jsonl",
        evaluation__metrics=["nope"],
        dpo__loss_type=["nope"],
    )
    assert {finding.field for finding in errors(found)} == {
        "tuning.target_modules",
        "data.sft",
        "evaluation.metrics",
        "dpo.loss_type",
    }
    assert found.exit_code == 64
    with pytest.raises(RecipeError) as caught:
        preflight(Recipe.model_validate(changed(tuning__target_modules="nope")), "r.yaml", tmp_path)
    assert caught.value.message.startswith("r.yaml: tuning.target_modules: the model has no")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    model = model_copy(tmp_path)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    found = checked(tmp_path, base_model=str(model))
    assert found.exit_code == 66
    assert "model.safetensors" in lines(found, "error")


@pytest.mark.slow
def test_a_length_above_the_context_is_a_warning(tmp_path: Path) -> None:
    found = checked(tmp_path, sft__max_length=4096)
    assert "sft.max_length: is 4096 tokens, the base model's context 512" in lines(found, "warning")
    found = checked(tmp_path, evaluation__max_new_tokens=600)
    assert "evaluation.max_new_tokens: is 600, which fills the context" in lines(found, "error")


def adapter(folder: Path, *, inputs: int = 128, digest: str | None = None) -> Path:
    """An adapter of q_proj, its weights zero."""
    place = folder / "adapter"
    place.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (place / "adapter_config.json").write_text(json.dumps(config))
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = [
        (f"{stem}.lora_A.weight", "F32", (4, inputs)),
        (f"{stem}.lora_B.weight", "F32", (128, 4)),
    ]
    size = 4 * (4 * inputs + 128 * 4)
    (place / "adapter_model.safetensors").write_bytes(header_bytes(tensors) + bytes(size))
    if digest:
        (place / "base_model.json").write_text(json.dumps({"source": "x", "digest": digest}))
    return place


@pytest.mark.slow
def test_an_adapter_of_this_base_passes(tmp_path: Path) -> None:
    place = adapter(tmp_path, digest=digest_directory(BASE))
    assert errors(checked(tmp_path, tuning__init_adapter=str(place))) == []


def test_an_adapter_of_another_base_is_66(tmp_path: Path) -> None:
    place = adapter(tmp_path, digest="f" * 64)
    found = checked(tmp_path, tuning__init_adapter=str(place))
    assert found.exit_code == 66
    assert "was trained on a base model with digest ffffffffffff" in lines(found, "error")


def test_an_adapter_that_does_not_fit_is_66(tmp_path: Path) -> None:
    found = checked(tmp_path, tuning__init_adapter=str(adapter(tmp_path, inputs=64)))
    assert found.exit_code == 66
    assert "belongs to another base" in lines(found, "error")


def test_an_adapter_that_is_not_there_is_64(tmp_path: Path) -> None:
    found = checked(tmp_path, tuning__init_adapter="nowhere")
    assert found.exit_code == 64
    assert "tuning.init_adapter: 'nowhere' is not an adapter directory" in lines(found, "error")


def needs(**fields: Any) -> Needs:
    recipe = Recipe.model_validate(changed(**fields))
    shape = shape_from_name("a/b-8B")
    assert shape is not None
    return needs_of(recipe, shape, Path(os.sep), download=True, named={})


def test_the_estimate_follows_the_tuning_mode() -> None:
    peaks = {
        mode: needs(tuning__mode=mode, tuning__dtype="bfloat16").stages[0].least_bytes / 2**30
        for mode in ("qlora", "lora", "full")
    }
    assert 4 < peaks["qlora"] < 9 < 15 < peaks["lora"] < 19 < 115 < peaks["full"] < 130


def test_the_estimate_of_full_tuning_follows_weights_and_optimizer() -> None:
    """Bytes a parameter: weight, gradient and two moments; 8 billion of them."""

    def per_parameter(weights: str, optimizer: str) -> float:
        tuning = {"mode": "full", "weights_dtype": weights}
        need = needs(tuning=tuning, sft__optimizer=optimizer).stages[0]
        return (need.weights_bytes + need.trained_bytes) / 8e9

    assert per_parameter("float32", "adamw") == 16
    assert per_parameter("float32", "adamw_8bit") == 10
    assert per_parameter("bfloat16", "adamw") == 12
    assert per_parameter("bfloat16", "paged_adamw_8bit") == 6


def test_bfloat16_weights_count_the_copies_that_are_rounded() -> None:
    shape = read_shape(BASE)
    recipe = Recipe.model_validate(changed(tuning={"mode": "full", "weights_dtype": "bfloat16"}))
    need = needs_of(recipe, shape, Path(os.sep), download=False, named={}).stages[0]
    assert need.trained_bytes == 10 * shape.parameters + 16 * shape.embedding_parameters
    assert shape.embedding_parameters == 1024 * 128


def test_ppo_counts_the_weights_kept_while_it_generates_its_roles_and_its_best_policy() -> None:
    def ppo(mode: str, dtype: str = "float32", **section: Any) -> Needs:
        return needs(
            data__prompts="builtin:freight-prompts",
            method="ppo",
            dpo=None,
            reward={},
            ppo={"max_length": 192, "max_new_tokens": 40, **section},
            tuning={"mode": mode, "dtype": dtype},
        )

    def weights(found: Needs) -> dict[str, float]:
        return {stage.stage: stage.weights_bytes / 8e9 for stage in found.stages}

    assert weights(ppo("lora")) == {"sft": 4, "reward": 4, "ppo": 8}
    assert weights(ppo("lora", "bfloat16"))["ppo"] == 2
    assert weights(ppo("full"))["ppo"] == 16, "policy, reference, reward and value model"
    separate, head = (ppo("full", value_model=model).disk_bytes for model in ("separate", "policy"))
    assert separate - head == 2 * 12 * 8_000_000_000, "two checkpoints of a weight and two moments"
    watched = ppo("full", watch={"metric": "exact_match"}).disk_bytes
    assert watched - separate == 2 * 4 * 8_000_000_000


def test_the_first_attempt_on_a_cpu_takes_16_rows_of_a_larger_batch() -> None:
    need = needs(sft__batch_size=64).stages[0]
    assert need.first_rows == 16
    head = need.head_bytes - need.one_row_head_bytes
    assert need.first_bytes - need.least_bytes == 15 * need.one_row_bytes + head
    assert need.head_bytes == 16 * need.one_row_head_bytes, "a tile holds the rows of the attempt"


@pytest.mark.parametrize(
    ("tuning", "expected"),
    [
        ({"layers_to_transform": [1, 4]}, "names layer 4; the model has layers 0 to 3"),
        ({"rank_pattern": {"w1": 8}}, "tuning.rank_pattern: 'w1' means none of the 28 modules"),
        (
            {"alpha_pattern": {"layers.0": 8}, "layers_to_transform": [1]},
            "tuning.alpha_pattern: 'layers.0' means none of the 7 modules",
        ),
    ],
)
def test_layers_and_patterns_that_are_not_there_are_errors(
    tmp_path: Path, tuning: dict[str, Any], expected: str
) -> None:
    found = checked(tmp_path, tuning=tuning)
    assert expected in lines(found, "error")
    assert found.exit_code == 64


def test_too_little_memory_is_a_warning_and_too_little_disk_an_error() -> None:
    need = needs().model_copy(update={"memory_available_bytes": 2**30, "disk_free_bytes": 10})
    findings = list(need_findings(need, guessed=False))
    assert [finding.level for finding in findings] == ["warning", "warning", "error"]
    assert findings[-1].exit_code == DiskSpaceError.exit_code
    assert list(need_findings(need, guessed=True))[-1].level == "warning"
