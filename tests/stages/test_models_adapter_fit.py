"""Adapters made elsewhere: all of one is loaded, with its vocabulary, or it is refused by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merging_cases import family, load, write_base
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from stage_runs import make_spec, run_and_publish, run_stage, work_of

from alignflow.errors import ArtifactError, RecipeError
from alignflow.merging import AdapterStep, MergeOptions, merge
from alignflow.models.loading import (
    BaseModel,
    load_adapter,
    load_base,
    load_merged,
    load_policy,
    read_base,
)
from alignflow.pipeline.existing_model import generate
from alignflow.stages.artifacts import Artifact
from alignflow.stages.spec import StageSpec
from alignflow.training.engine.saving import save_adapter

Make = Callable[..., StageSpec]
SOME = ["q_proj", "embed_tokens"]
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "resized": (104, {"target_modules": ["q_proj"]}),
    "resized and saved": (104, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "resized, some tokens": (104, {"trainable_token_indices": [3, 100]}),
    "resized and targeted": (104, {"target_modules": SOME}),
    "head saved": (96, {"modules_to_save": ["lm_head"]}),
    "norm saved": (96, {"modules_to_save": ["norm"]}),
    "some tokens": (96, {"trainable_token_indices": [3, 90]}),
    "targeted": (96, {"target_modules": SOME}),
}
PLAIN: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
IDS = torch.tensor([[1, 5, 94, 100, 2, 3, 7]])


def foreign(base: Path, folder: Path, rows: int, **lora: Any) -> tuple[Path, Any]:
    """An adapter as PEFT alone makes it on a base of so many tokens, and the model it is of."""
    torch.manual_seed(5)
    model: Any = load(base)
    with warnings.catch_warnings(action="ignore"):
        if rows != len(model.get_input_embeddings().weight):
            model.resize_token_embeddings(rows, mean_resizing=False)
        model = get_peft_model(model, LoraConfig(**{**PLAIN, **lora}))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(str(folder))
    return folder, model.eval()


def logits(model: Any, rows: int) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS.clamp(max=rows - 1)).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_adapter_is_its_model_and_so_are_its_copy_and_its_merge(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    rows, lora = KINDS[kind]
    config = family("qwen3", tie_word_embeddings=tied, num_hidden_layers=1)
    path = write_base(config, tmp_path / "base", "float32")
    base = BaseModel(path=str(path), source=str(path), digest="")
    adapter, model = foreign(path, tmp_path / "adapter", rows, **lora)
    fresh = load_base(base, dtype="float32", quantization=None)
    if kind == "resized and targeted" and not tied:  # PEFT leaves the head out of the file
        with pytest.raises(ArtifactError, match="embedding and head are not both resized alike"):
            load_adapter(fresh, adapter, base)
        return
    expected = logits(model, rows)
    loaded = load_adapter(fresh, adapter, base)
    assert torch.equal(logits(loaded, rows), expected)
    again = save_adapter(loaded, tmp_path / "again", base, None)
    fresh = load_base(base, dtype="float32", quantization=None)
    assert torch.equal(logits(load_adapter(fresh, again, base), rows), expected)
    merge(path, [AdapterStep(adapter)], tmp_path / "merged", MergeOptions())
    merged = load_merged(tmp_path / "merged", "float32")
    assert torch.allclose(logits(merged, rows), expected, atol=1e-5)


@pytest.fixture
def elsewhere(tiny_base: Path, tmp_path: Path) -> Path:
    """An adapter of the tiny base, its vocabulary eight tokens longer."""
    rows = json.loads((tiny_base / "config.json").read_text())["vocab_size"] + 8
    return foreign(tiny_base, tmp_path / "elsewhere", rows)[0]


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "ppo"])
def test_every_stage_starts_from_a_resized_vocabulary_and_saves_it(
    stage: str, training_spec: Make, prepared: Artifact, elsewhere: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"learning_rate": 1e-12, "tuning": {"init_adapter": str(elsewhere)}}
    if stage == "ppo":
        reward = tmp_path / "reward.py"
        reward.write_text(
            "def one(prompts, responses, targets):\n    return [1.0] * len(prompts)\n"
        )
        options |= {"rewards": [f"{reward}:one"], "max_new_tokens": 4}
    spec = training_spec(stage, **options)
    run_stage(spec)
    given = load_file(elsewhere / "adapter_model.safetensors")
    saved = load_file(work_of(spec) / "output" / "adapter" / "adapter_model.safetensors")
    kept = [name for name in given if stage != "reward" or "lm_head" not in name]
    assert max(float((given[name] - saved[name]).abs().max()) for name in kept) < 1e-9


def test_what_sft_made_of_it_is_loaded_and_continued(
    prepared: Artifact, elsewhere: Path, tmp_path: Path
) -> None:
    tuning = {"init_adapter": str(elsewhere)}
    sft = run_and_publish(make_spec(prepared, tmp_path, "sft", tuning=tuning))
    base, rows = read_base(prepared.directory), 96
    model = load_policy(base, sft.directory, dtype="float32", quantization=None)
    champion = run_and_publish(make_spec(prepared, tmp_path, "dpo", sft=sft))
    spec = make_spec(prepared, tmp_path, "dpo", sft=sft, learning_rate=1e-12)
    spec = spec.model_copy(update={"inputs": {**spec.inputs, "init": champion.ref()}})
    run_stage(spec)
    path = work_of(spec) / "output"
    continued = load_policy(base, path, dtype="float32", quantization=None)
    theirs = load_policy(base, champion.directory, dtype="float32", quantization=None)
    assert torch.allclose(logits(continued, rows), logits(theirs, rows), atol=1e-6)
    assert not torch.allclose(logits(continued, rows), logits(model, rows), atol=1e-6)


def renamed(adapter: Path, rename: Callable[[str], str | None]) -> None:
    file = adapter / "adapter_model.safetensors"
    named = {rename(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in named.items() if name}, file)


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (
            lambda name: name.replace("base_model.model.", "base_model.model.model.", 1),
            r"4 of its tensors have no place in it, such as base_model.model.model.model.layers.0"
            r".*; 4 of its places have no tensor, such as base_model.model.model.layers.0",
        ),
        (
            lambda name: None if "layers.1" in name and "lora_B" in name else name,
            r"model: 1 of its places have no tensor, such as base_model.model.model.layers.1"
            r".self_attn.q_proj.lora_B.weight\. Use an adapter",
        ),
    ],
)
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_an_adapter_that_is_not_loaded_whole_is_refused_by_its_tensors(
    stage: str,
    rename: Callable[[str], str | None],
    said: str,
    training_spec: Make,
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    rows = json.loads((tiny_base / "config.json").read_text())["vocab_size"]
    adapter, _ = foreign(tiny_base, tmp_path / "adapter", rows)
    renamed(adapter, rename)
    with pytest.raises(ArtifactError, match=said):
        run_stage(training_spec(stage, tuning={"init_adapter": str(adapter)}))


def test_generate_names_the_option_where_the_recorded_base_is_absent(
    tiny_base: Path, elsewhere: Path
) -> None:
    config = elsewhere / "adapter_config.json"
    text = json.loads(config.read_text())
    config.write_text(json.dumps({**text, "base_model_name_or_path": "/moved/away"}))
    with pytest.raises(
        RecipeError, match=r"names the base model /moved/away.* Name it with --base"
    ):
        generate(elsewhere, "what colour is thing 1?")
    assert isinstance(generate(elsewhere, "x", base=str(tiny_base), max_new_tokens=2), str)
