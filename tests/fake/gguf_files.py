"""Tiny GGUF files as llama.cpp's converter writes them, and what is in them by other means."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, LAYERS, HEADS, KEY_HEADS, CONTEXT = 64, 2, 4, 2, 256
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONTROL, NORMAL = 3, 1
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Written(NamedTuple):
    """What a file holds."""

    path: Path
    weights: dict[str, np.ndarray]
    """Dequantized, by the names of Transformers."""
    tokenizer: Tokenizer
    """As the model's own tokenizer.json would say."""


def own_tokenizer() -> Tokenizer:
    """A byte-level tokenizer that takes each digit for itself, as SmolLM2's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [f"what colour is thing {n}?\n\n  it is\n\nred.   \n\n" for n in range(40)],
        trainers.BpeTrainer(
            vocab_size=352,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def rounded_to_q4_1(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 32 weights as `d * q + m` in the format's bytes, and the values they stand for."""
    blocks = weights.reshape(-1, 32)
    least = blocks.min(axis=1, keepdims=True)
    step = (blocks.max(axis=1, keepdims=True) - least) / 15
    number = np.clip((blocks - least) / step + 0.5, 0, 15).astype(np.uint8)
    step, least = step.astype(np.float16), least.astype(np.float16)
    packed = number[:, :16] | (number[:, 16:] << 4)
    content = np.concatenate([step.view(np.uint8), least.view(np.uint8), packed], axis=1)
    values = number * step.astype(np.float32) + least.astype(np.float32)
    return content.reshape(weights.shape[0], -1), values.reshape(weights.shape)


def as_llama_cpp_has_it(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in the order in which llama.cpp turns pairs of them."""
    rows, columns = weights.shape
    parted = weights.reshape(heads, 2, rows // heads // 2, columns)
    return parted.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    path: Path,
    *,
    pre: str = "smollm",
    metadata: dict[str, int] | None = None,
    extra: str | None = None,
) -> Written:
    """A llama with tied embeddings whose linear layers are Q4_1 and the rest float32.

    `metadata` are whole numbers to add; `extra` names a tensor that llamas do not have.
    """
    import gguf

    tokenizer = own_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    writer: Any = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("Tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([CONTROL if token in SPECIAL else NORMAL for token in vocabulary])
    merges = json_of(tokenizer)["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, value in (metadata or {}).items():
        writer.add_uint32(name, value)

    weights: dict[str, np.ndarray] = {}
    random = np.random.default_rng(0)

    def add(name: str, ours: str, *shape: int, heads: int = 0) -> None:
        values = random.normal(0, 0.3, shape).astype(np.float32)
        if len(shape) == 1 or name.startswith("token"):
            writer.add_tensor(f"{name}.weight", values)
        else:
            content, values = rounded_to_q4_1(values)
            if heads:
                content = as_llama_cpp_has_it(content, heads)
            writer.add_tensor(f"{name}.weight", content, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        weights[f"{ours}.weight"] = values

    add("token_embd", "model.embed_tokens", len(vocabulary), HIDDEN)
    keys = HIDDEN // HEADS * KEY_HEADS
    for layer in range(LAYERS):
        there, here = f"blk.{layer}", f"model.layers.{layer}"
        add(f"{there}.attn_norm", f"{here}.input_layernorm", HIDDEN)
        add(f"{there}.ffn_norm", f"{here}.post_attention_layernorm", HIDDEN)
        add(f"{there}.attn_q", f"{here}.self_attn.q_proj", HIDDEN, HIDDEN, heads=HEADS)
        add(f"{there}.attn_k", f"{here}.self_attn.k_proj", keys, HIDDEN, heads=KEY_HEADS)
        add(f"{there}.attn_v", f"{here}.self_attn.v_proj", keys, HIDDEN)
        add(f"{there}.attn_output", f"{here}.self_attn.o_proj", HIDDEN, HIDDEN)
        add(f"{there}.ffn_gate", f"{here}.mlp.gate_proj", 2 * HIDDEN, HIDDEN)
        add(f"{there}.ffn_up", f"{here}.mlp.up_proj", 2 * HIDDEN, HIDDEN)
        add(f"{there}.ffn_down", f"{here}.mlp.down_proj", HIDDEN, 2 * HIDDEN)
    add("output_norm", "model.norm", HIDDEN)
    if extra:
        add(extra, "extra", HIDDEN, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(path, weights, tokenizer)


def json_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What its tokenizer.json says."""
    import json

    return json.loads(tokenizer.to_str())
