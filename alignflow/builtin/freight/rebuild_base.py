"""Pre-trains the embedded base model from nothing: `python -m alignflow.builtin.freight.rebuild_base`.

About one million parameters and several minutes on one core. The result is in the repository;
this script is the recipe for it and nothing in the pipeline calls it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from alignflow.builtin.freight.corpus import (
    END_OF_DOCUMENT,
    END_OF_TURN,
    START_OF_TURN,
    pretraining_document,
)

VOCABULARY = 1024
CONTEXT_TOKENS = 512
BLOCK_TOKENS = 192
BATCH_BLOCKS = 10
MUON_LEARNING_RATE = 0.02
ADAMW_LEARNING_RATE = 4e-3
WARM_UP_STEPS = 30

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_DOCUMENT, START_OF_TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Role names occur in the chat format only; without them here they would be spelled in letters.
    roles = ["user", "assistant", "system"] * 50
    tokenizer.train_from_iterator(documents + roles, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_DOCUMENT,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=384,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.vocab[END_OF_TURN],
        pad_token_id=tokenizer.vocab[END_OF_DOCUMENT],
    )
    return Qwen3ForCausalLM(config)


def token_blocks(tokenizer: PreTrainedTokenizerFast, rng: Random, steps: int) -> Tensor:
    """So many batches of packed documents, shape [steps, blocks, tokens]."""
    needed, tokens = steps * BATCH_BLOCKS * BLOCK_TOKENS, []
    while len(tokens) < needed:
        documents = [pretraining_document(rng) + END_OF_DOCUMENT for _ in range(500)]
        for ids in tokenizer(documents)["input_ids"]:
            tokens.extend(ids)
    return torch.tensor(tokens[:needed]).view(steps, BATCH_BLOCKS, BLOCK_TOKENS)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by five Newton-Schulz steps, in fp32.

    `torch.optim.Muon` computes those steps in bf16, which made them 14 times slower on a CPU
    without bf16 units (0.87 s against 0.06 s a step here).

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Moves every matrix by its orthogonalized momentum (Nesterov)."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                buffer = state.setdefault("buffer", torch.zeros_like(matrix))
                buffer.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalize(matrix.grad.lerp(buffer, group["momentum"]))
                rows, columns = matrix.shape
                matrix.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalize(matrix: Tensor) -> Tensor:
    """The matrix with singular values near one."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        # Quintic coefficients from Jordan et al.: fast, and only roughly to one.
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def pretrain(model: Qwen3ForCausalLM, batches: Tensor) -> None:
    """Muon for the matrices, AdamW for embeddings and norms; linear decay over the last half."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = (
        Muon(matrices, lr=MUON_LEARNING_RATE),
        torch.optim.AdamW(others, lr=ADAMW_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    )
    steps = len(batches)

    def rate(step: int) -> float:
        return min((step + 1) / WARM_UP_STEPS, 1.0, 2 * (1 - step / steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in optimizers]
    model.train()
    start = time.monotonic()
    for step, batch in enumerate(batches):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            speed = (step + 1) * batch.numel() / (time.monotonic() - start)
            value = loss.item()
            print(f"step {step}/{steps}: loss {value:.3f}, {speed:.0f} tokens/s", flush=True)
            if not math.isfinite(value):
                raise FloatingPointError(f"loss is {value} at step {step}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "base")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng = Random(f"freight-base/{arguments.seed}")
    tokenizer = build_tokenizer([pretraining_document(rng) for _ in range(6000)])
    model = build_model(tokenizer)
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens")
    pretrain(model, token_blocks(tokenizer, rng, arguments.steps))
    model.generation_config = GenerationConfig(
        max_new_tokens=48,
        do_sample=False,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.bfloat16().save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
