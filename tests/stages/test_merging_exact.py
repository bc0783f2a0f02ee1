"""Merged weights have the bits of PEFT's `merge_and_unload`, for every kind of LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from merging_cases import by_peft, differing, family, untied, write_adapter, write_base

from alignflow.merging import AdapterStep, MergeOptions, merge

FAST = MergeOptions(verify=False)
PROJECTIONS = ["q_proj", "v_proj", "down_proj"]
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("llama", {}, {"target_modules": PROJECTIONS}),
    "rslora": ("llama", {}, {"target_modules": PROJECTIONS, "use_rslora": True}),
    "dora": ("llama", {}, {"target_modules": PROJECTIONS, "use_dora": True}),
    "all linear with patterns": (
        "qwen3",
        {},
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 3, "layers.0.mlp.up_proj": 7},
            "alpha_pattern": {"v_proj": 5, r"layers\.1\.self_attn\.o_proj": 9},
        },
    ),
    "tied": ("qwen3", {"tie_word_embeddings": True}, {"target_modules": "all-linear"}),
    "modules to save": (
        "llama",
        {},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    ),
    "embeddings and head": (
        "llama",
        {},
        {"target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    ),
    "dora on embeddings": (
        "llama",
        {},
        {"target_modules": ["embed_tokens", "k_proj"], "use_dora": True},
    ),
    "conv1d": (
        "gpt2",
        {},
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "conv1d with dora": (
        "gpt2",
        {},
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "all biases": ("gpt2", {}, {"target_modules": ["c_attn"], "bias": "all"}),
    "lora biases": (
        "qwen2",
        {},
        {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"},
    ),
    "bias of B": ("qwen2", {}, {"target_modules": ["q_proj", "k_proj"], "lora_bias": True}),
    "trained tokens": (
        "llama",
        {},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 90]},
    ),
    "trained tokens of a tied model": (
        "qwen3",
        {"tie_word_embeddings": True},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 90]},
    ),
    "gemma": ("gemma", {}, {"target_modules": "all-linear"}),
    "fused experts": (
        "mixtral",
        {},
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
    "fused experts of qwen": (
        "qwen3_moe",
        {},
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]},
    ),
    "an alpha of one of the fused": (
        "qwen3_moe",
        {},
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            "rank_pattern": {r".*\.gate_up_proj": 8},
            "alpha_pattern": {r".*\.gate_up_proj": 32},
        },
    ),
    "experts fused on disk too, as (in, out)": (
        "gpt_oss",
        {},
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
}


def merged(base: Path, out: Path, *adapters: Path, options: MergeOptions = FAST) -> Path:
    merge(base, [AdapterStep(path) for path in adapters], out, options)
    return out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_peft(case: str, dtype: str, tmp_path: Path) -> None:
    name, changes, lora = CASES[case]
    base = write_base(family(name, **changes), tmp_path / "base", dtype)
    adapter = write_adapter(base, tmp_path / "adapter", **{"r": 4, "lora_alpha": 8, **lora})
    out = merged(base, tmp_path / "out", adapter)
    assert differing(by_peft(base, adapter), out) == []


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_modules_saved_of_a_tied_model_part_embedding_and_head(
    saved: list[str], tmp_path: Path
) -> None:
    base = write_base(family("llama", tie_word_embeddings=True), tmp_path / "base")
    adapter = write_adapter(
        base, tmp_path / "adapter", r=4, target_modules=["q_proj"], modules_to_save=saved
    )
    out = merged(base, tmp_path / "out", adapter)
    assert differing(by_peft(untied(base, tmp_path / "untied"), adapter), out) == []


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_tied_embeddings_are_untied_where_an_adapter_parts_them(
    target: str, tmp_path: Path
) -> None:
    base = write_base(family("llama", tie_word_embeddings=True), tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", r=4, target_modules=[target, "q_proj"])
    out = merged(base, tmp_path / "out", adapter)
    expected = by_peft(untied(base, tmp_path / "untied"), adapter)
    assert not expected["lm_head.weight"].equal(expected["model.embed_tokens.weight"])
    assert differing(expected, out) == []
