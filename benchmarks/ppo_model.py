"""What the memory and speed parts of `benchmarks/ppo.py` work on: random weights, rows of one length."""

from __future__ import annotations

import json
import random
from pathlib import Path

PROMPT_TOKENS, RESPONSE_TOKENS, ROWS = 96, 32, 64
VOCABULARY = 49152
TEMPLATE = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
)


def build_base(directory: Path, layers: int = 30) -> Path:
    """A model of SmolLM-135M's shape with random weights and a tokenizer of one token per word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<eos>", "<pad>", "<unk>", *(f"w{n}" for n in range(VOCABULARY - 3))]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(str(directory))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(str(directory))
    return directory


def write_rows(directory: Path) -> None:
    """Demonstrations and pairs, all of the same length."""
    draw = random.Random(0)

    def text(tokens: int) -> str:
        return " ".join(f"w{draw.randrange(VOCABULARY - 3)}" for _ in range(tokens))

    prompts = [text(PROMPT_TOKENS) for _ in range(ROWS)]
    sft = [{"prompt": p, "completion": text(RESPONSE_TOKENS)} for p in prompts]
    pairs = [
        {"prompt": p, "chosen": text(RESPONSE_TOKENS), "rejected": text(RESPONSE_TOKENS)}
        for p in prompts
    ]
    for name, rows in (("sft", sft), ("pairs", pairs)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(lines)
