"""What is read off a config or a header is what the stages meet: context, layers, tokens."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from check_cases import checked, edit_json, lines, model_copy
from peft import LoraConfig, get_peft_model
from toy_architectures import REAL, real_config, save_toy, toy
from transformers import AutoConfig, AutoModelForCausalLM

from alignflow.checking.architecture import read_shape
from alignflow.data.base import context_length
from alignflow.models.adapters import new_adapter, target_modules
from alignflow.models.loading import quiet
from alignflow.models.toy import toy_config, toy_model, toy_texts
from alignflow.recipe import TuningSection

LIMITED = sorted(set(REAL) - {"mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "bloom", "mpt"})


@pytest.mark.parametrize("name", LIMITED)
def test_context_is_what_transformers_calls_it(name: str) -> None:
    config = real_config(name)
    assert context_length(config.to_dict()) == config.max_position_embeddings


def test_context_of_a_part_of_several_and_of_models_without_a_limit() -> None:
    whole = AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 777})
    assert context_length(whole.to_dict()) == 777
    assert context_length(real_config("mpt").to_dict()) == 2048
    assert context_length(real_config("mamba").to_dict()) is None


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "bloom", "gpt_neox", "qwen3_5_text"])
def test_all_linear_means_the_layers_that_peft_means(name: str) -> None:
    model = toy(name)
    ours = target_modules(model, "all-linear")
    with quiet():
        theirs = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear"))
    modules = {name.rpartition(".")[2] for name in theirs.base_model.targeted_module_names}
    assert ours == sorted(modules - {"lm_head", "embed_out"})


def test_layers_whose_weights_a_kernel_reads_past_the_adapter_get_none() -> None:
    assert target_modules(toy("mamba"), "all-linear") == ["dt_proj", "in_proj", "x_proj"]
    new_adapter(toy("mamba"), TuningSection(), "CAUSAL_LM")


def test_layers_that_lie_turned_are_sized_as_any(tmp_path: Path) -> None:
    shape = read_shape(save_toy("gpt2", tmp_path))
    assert shape.modules["transformer.h.0.attn.c_attn"] == (192, 64)
    assert (shape.hidden, shape.layers, shape.context) == (64, 2, 512)
    assert shape.adapter_parameters(TuningSection(rank=4)) == sum(
        p.numel()
        for name, p in new_adapter(toy("gpt2"), TuningSection(rank=4), "x").named_parameters()
        if "lora_" in name
    )


def test_a_router_that_is_no_mere_product_gets_no_adapter() -> None:
    config = toy_config(AutoConfig.for_model("llama4_text"))
    adapted = new_adapter(toy_model(AutoModelForCausalLM, config), TuningSection(), "CAUSAL_LM")
    assert not any("router" in name for name in adapted.base_model.targeted_module_names)
    adapted(input_ids=torch.tensor(toy_texts(9))).logits.sum().backward()


def test_adapters_stay_out_of_what_reads_images() -> None:
    config = toy_config(AutoConfig.for_model("gemma3"))
    model = toy_model(AutoModelForCausalLM, config)
    assert any("vision_tower" in n and n.endswith("q_proj") for n, _ in model.named_modules())
    adapted = new_adapter(model, TuningSection(), "CAUSAL_LM")
    targeted = adapted.base_model.targeted_module_names
    assert len(targeted) == 2 * 7
    assert all(name.startswith("model.language_model.") for name in targeted)
    adapted(input_ids=torch.tensor(toy_texts(9))).logits.sum().backward()
    gradients = [p.grad for n, p in adapted.named_parameters() if "lora_B" in n]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_a_token_beyond_the_embedding_is_found_before_anything_is_prepared(tmp_path: Path) -> None:
    model = model_copy(tmp_path)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    extra = {**tokenizer["added_tokens"][0], "id": 1024, "content": "<|extra|>"}
    edit_json(model / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], extra])
    found = checked(tmp_path, base_model=str(model))
    assert "embedding" not in lines(found, "error")
    template = tmp_path / "chatml.jinja"
    template.write_text("{% for m in messages %}<|extra|>{{ m.content }}{% endfor %}")
    source = {"source": str(model), "chat_template": str(template)}
    found = checked(tmp_path, base_model=source)
    assert "uses the token '<|extra|>', whose id is 1024" in lines(found, "error")
