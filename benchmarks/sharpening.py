"""A control for preference training: the SFT model, only sampled at a lower temperature.

The temperature is the one at which SFT's mean entropy per token, on its own samples, equals the
aligned model's at temperature 1. It is found on the development prompts, then used on the test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from alignflow.builtin import rows
from alignflow.builtin.freight import judge
from alignflow.models import answers, load_policy, load_tokenizer, read_base, respond

MAX_NEW_TOKENS = 40
HALVINGS = 7


def accuracy_at_matched_entropy(prepare: Path, sft: Path, aligned: Path) -> dict[str, float]:
    """Sampled accuracy and unsafe rate of SFT at the matched temperature, and the temperature."""
    base, tokenizer = read_base(prepare), load_tokenizer(prepare)
    development = [
        list(
            tokenizer.apply_chat_template(
                row["prompt"], add_generation_prompt=True, return_dict=False
            )
        )
        for row in rows("freight-development")
        if row["group"] == "development"
    ]
    wanted = mean_entropy(
        load_policy(base, aligned, dtype="float32", quantization=None).eval(),
        tokenizer,
        development,
        1.0,
    )
    model = load_policy(base, sft, dtype="float32", quantization=None).eval()
    low, high = 0.05, 1.5
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if mean_entropy(model, tokenizer, development, middle) < wanted:
            low = middle
        else:
            high = middle
    temperature = (low + high) / 2
    table = pq.read_table(prepare / "evaluation" / "prompts.parquet").to_pylist()
    test = [row for row in table if row["group"] == "test"]
    responses = respond(
        model,
        tokenizer,
        [row["prompt_ids"] for row in test],
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=temperature,
        seed=0,
    )
    verdicts = [
        judge(answer, row["target"])
        for answer, row in zip(answers(tokenizer, [r.ids for r in responses]), test, strict=True)
    ]
    return {
        "sharpened temperature": temperature,
        "sharpened entropy": wanted,
        "sharpened sampled_accuracy": sum(v.correct for v in verdicts) / len(verdicts),
        "sharpened unsafe_rate": sum(v.category == "unsafe" for v in verdicts) / len(verdicts),
    }


@torch.inference_mode()
def mean_entropy(model: Any, tokenizer: Any, prompts: list[list[int]], temperature: float) -> float:
    """Mean entropy, nats per token, of the distributions that the model's own samples came from."""
    responses = respond(
        model,
        tokenizer,
        prompts,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=temperature,
        seed=1,
    )
    total, tokens = 0.0, 0
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor([[*prompt, *response.ids]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / temperature
        total += torch.distributions.Categorical(logits=logits).entropy().sum().item()
        tokens += len(logits)
    return total / tokens
