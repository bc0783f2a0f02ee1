"""Attention is computed as the architecture does by itself, or as the recipe says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_architectures import save_toy
from transformers import AutoModelForCausalLM

from alignflow.errors import RecipeError
from alignflow.models.loading import BaseModel, load_base
from alignflow.models.toy import toy_texts
from alignflow.stages.spec import StageSpec

UNLIKE = ("gemma2", "gpt_oss", "mamba", "mamba2", "bloom", "rwkv", "mpt", "gptj", "codegen")
"""Architectures that know other kinds of attention than most."""


def base(directory: Path, **options: str) -> BaseModel:
    return BaseModel.model_validate(
        {"path": str(directory), "source": "toy", "digest": "", **options}
    )


@pytest.mark.parametrize("name", UNLIKE)
def test_each_architecture_loads_with_attention_of_its_own(name: str, tmp_path: Path) -> None:
    directory, ids = save_toy(name, tmp_path), torch.tensor(toy_texts(12))
    model = load_base(base(directory), dtype="float32", quantization=None).eval()
    theirs = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert model.config._attn_implementation == theirs.config._attn_implementation


def test_the_recipe_may_name_another_which_gives_the_same_to_rounding(tmp_path: Path) -> None:
    directory, ids = save_toy("qwen3", tmp_path), torch.tensor(toy_texts(12))
    models = [
        load_base(base(directory, attention=kind), dtype="float32", quantization=None).eval()
        for kind in ("auto", "eager")
    ]
    assert [model.config._attn_implementation for model in models] == ["sdpa", "eager"]
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in models]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)


def test_attention_that_an_architecture_does_not_have_is_named(tmp_path: Path) -> None:
    directory = save_toy("gpt_oss", tmp_path)
    with pytest.raises(RecipeError, match=r"compute\.attention sdpa: GptOss"):
        load_base(base(directory, attention="sdpa"), dtype="float32", quantization=None)


def test_attention_is_no_part_of_a_stages_key(tmp_path: Path) -> None:
    keys = {
        StageSpec.model_validate(
            {"stage": "sft", "home": "", "params": {}, "seed": 0, "compute": compute}
        ).key
        for compute in ({}, {"attention": "eager"})
    }
    assert len(keys) == 1
