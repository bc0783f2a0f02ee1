"""Architectures at toy size, made from configs like those of real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from alignflow.models.toy import toy_config, toy_model

MOE = {"num_experts_per_tok": 8, "moe_intermediate_size": 768}
REAL: dict[str, dict[str, Any]] = {
    # dense
    "llama": {"num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0},
    "qwen2": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 128, "num_key_value_heads": 8},
    "phi": {},
    "phi3": {"vocab_size": 32064, "pad_token_id": 32000},
    "gemma": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "olmo2": {},
    "smollm3": {},
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0156},
    "cohere": {"logit_scale": 0.0625},
    "glm4": {},
    "starcoder2": {"num_key_value_heads": 2},
    "stablelm": {"partial_rotary_factor": 0.25},
    "nemotron": {"num_key_value_heads": 8, "num_attention_heads": 32},
    "opt": {},
    "gpt_neox": {},
    "falcon": {"new_decoder_architecture": False, "multi_query": True},
    "bloom": {"n_layer": 24, "n_head": 16, "hidden_size": 1024},
    "mpt": {"d_model": 4096, "n_heads": 32, "n_layers": 32},
    "gptj": {},
    "codegen": {},
    # Conv1D
    "gpt2": {},
    # sliding windows
    "mistral": {"sliding_window": 4096, "num_key_value_heads": 8},
    "gemma3_text": {"num_hidden_layers": 34, "sliding_window": 1024, "tie_word_embeddings": True},
    "cohere2": {"num_hidden_layers": 32, "sliding_window": 4096},
    "olmo3": {"num_hidden_layers": 32, "sliding_window": 4096},
    "exaone4": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "gemma4_text": {},
    # soft-capped
    "gemma2": {"num_hidden_layers": 26, "tie_word_embeddings": True},
    # mixtures of experts
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 128, **MOE},
    "olmoe": {"num_experts": 64, "num_experts_per_tok": 8},
    "gpt_oss": {"num_local_experts": 32, "num_experts_per_tok": 4},
    "deepseek_v3": {"num_hidden_layers": 61, "first_k_dense_replace": 3},
    "granitemoe": {"num_local_experts": 32, "num_experts_per_tok": 8},
    "glm4_moe": {},
    # linear attention beside attention
    "qwen3_next": {"num_hidden_layers": 48},
    "qwen3_5_text": {"num_hidden_layers": 32},
    "kimi_linear": {},
    "minimax": {},
    "lfm2": {"full_attn_idxs": [2, 5, 8, 10, 12, 14], "num_hidden_layers": 16},
    "olmo_hybrid": {},
    # state spaces, alone and beside attention
    "mamba": {},
    "mamba2": {},
    "falcon_mamba": {},
    "falcon_h1": {},
    "nemotron_h": {},
    "bamba": {"num_hidden_layers": 32, "attn_layer_indices": [9, 18, 27]},
    "jamba": {},
    "zamba2": {},
    "recurrent_gemma": {},
    "rwkv": {},
}
"""Model types, with what configs of real models say otherwise than the class's defaults."""


def real_config(name: str) -> Any:
    """A config at the size of a real model."""
    return AutoConfig.for_model(name, **REAL[name])


def toy(name: str, attention: str | None = None, tokenizer: Any = None) -> Any:
    """A language model at toy size, in float32, whose weights are the same each time.

    Without a tokenizer its texts are those of `toy_texts`, and no token ends one.
    """
    config = toy_config(real_config(name))
    if tokenizer is not None:
        text = config.get_text_config()
        text.vocab_size = len(tokenizer)
        if hasattr(text, "vocab_size_per_layer_input"):
            text.vocab_size_per_layer_input = len(tokenizer)
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(text, token, getattr(tokenizer, token))
    model = toy_model(AutoModelForCausalLM, config, attention)
    model.generation_config.eos_token_id = getattr(tokenizer, "eos_token_id", None)
    return model


def save_toy(name: str, directory: Path, tokenizer: Any = None) -> Path:
    """The toy's files, as those of any model, with the tokenizer's where there is one."""
    model = toy(name, tokenizer=tokenizer)
    model.generation_config.do_sample = False
    model.save_pretrained(str(directory))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(directory))
    return directory
