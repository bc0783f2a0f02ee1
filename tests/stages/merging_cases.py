"""Tiny models of several families, random adapters on them, and PEFT's own merge."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV3Config,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def family(name: str, **changes: Any) -> Any:
    """The config of a tiny model."""
    torch_free: dict[str, Any] = {
        "llama": lambda: LlamaConfig(**{**SMALL, **changes}),
        "qwen2": lambda: Qwen2Config(**{**SMALL, **changes}),
        "qwen3": lambda: Qwen3Config(**{**SMALL, "head_dim": 8, **changes}),
        "gemma": lambda: GemmaConfig(**{**SMALL, "head_dim": 8, **changes}),
        "mixtral": lambda: MixtralConfig(**{**SMALL, "num_local_experts": 4, **changes}),
        "qwen3_moe": lambda: Qwen3MoeConfig(
            **{
                **SMALL,
                "moe_intermediate_size": 20,
                "num_experts": 4,
                "head_dim": 8,
                "num_experts_per_tok": 2,
                **changes,
            }
        ),
        "deepseek_v3": lambda: DeepseekV3Config(
            **{
                **SMALL,
                "num_key_value_heads": 4,
                "moe_intermediate_size": 20,
                "n_group": 2,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "topk_group": 1,
                "first_k_dense_replace": 0,
                "kv_lora_rank": 8,
                "q_lora_rank": 8,
                "qk_rope_head_dim": 4,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
                **changes,
            }
        ),
        "gpt_oss": lambda: GptOssConfig(
            **{**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, **changes}
        ),
        "gpt2": lambda: GPT2Config(
            **{
                "vocab_size": 96,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 64,
                **changes,
            }
        ),
    }
    return torch_free[name]()


def write_base(
    config: Any, directory: Path, dtype: str = "bfloat16", shard: str = "50GB", seed: int = 0
) -> Path:
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # norms and biases too: random, not ones and zeros
        parameter.data += 0.05 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):  # decides which experts are asked
            buffer.copy_(torch.randn_like(buffer))
    model.to(getattr(torch, dtype)).save_pretrained(str(directory), max_shard_size=shard)
    return directory


def write_adapter(base: Path, directory: Path, seed: int = 1, **lora: Any) -> Path:
    """A random adapter whose every part differs from zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load(base), LoraConfig(**lora))
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape) * 0.1
                parameter.data = (parameter.float() + noise).to(parameter.dtype)
                assert name
        model.save_pretrained(str(directory))
    return directory


def load(directory: Path, **options: Any) -> Any:
    options.setdefault("dtype", "auto")
    return AutoModelForCausalLM.from_pretrained(str(directory), **options)


def untied(base: Path, directory: Path) -> Path:
    """The same model with a head of its own, as correctness needs when the two part."""
    model = load(base)
    config = AutoConfig.from_pretrained(str(base), tie_word_embeddings=False)
    other: Any = AutoModelForCausalLM.from_config(config).to(model.dtype)
    state = model.state_dict()
    other.load_state_dict(state)
    other.config.tie_word_embeddings = False
    other.save_pretrained(str(directory))
    return directory


def by_peft(base: Path, *adapters: Path, **options: Any) -> dict[str, torch.Tensor]:
    """`merge_and_unload`, adapter after adapter."""
    model = load(base, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for adapter in adapters:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return dict(model.state_dict())


def differing(expected: dict[str, torch.Tensor], merged: Path) -> list[str]:
    """Tensors whose bits differ between PEFT's result and ours, loaded by Transformers."""
    actual = load(merged).state_dict()
    assert set(actual) == set(expected)
    return [
        name
        for name, tensor in expected.items()
        if tensor.dtype != actual[name].dtype or not torch.equal(bits(tensor), bits(actual[name]))
    ]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
