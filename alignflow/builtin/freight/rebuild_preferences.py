"""Collects the embedded preferences: `python -m alignflow.builtin.freight.rebuild_preferences`.

It fine-tunes the base model on the demonstrations, samples answers to "production" prompts, judges
them by execution and pairs them. The result is in the repository; this script is the recipe for it
and nothing in the pipeline calls it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from alignflow.builtin.freight.corpus import END_OF_DOCUMENT
from alignflow.builtin.freight.demonstrations import chatter, demonstrations
from alignflow.builtin.freight.judge import judge
from alignflow.builtin.freight.world import Example, corrupt, draw_examples

DIRECTORY = Path(__file__).parent
PROMPTS = {"first": 480, "later": 240}
SAMPLES_PER_PROMPT = 4
MAX_NEW_TOKENS = 40
HELD_OUT_SHARE = 0.26
LEARNING_RATE = 6e-3
BATCH_SIZE = 16

Messages = list[dict[str, str]]


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, generate: bool
) -> list[int]:
    """Token ids of the messages in the chat format."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def fine_tune(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    *,
    learning_rate: float = LEARNING_RATE,
) -> Any:
    """SFT of a rank-16 adapter, one epoch, loss on the response only."""
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    steps = len(rows) // BATCH_SIZE
    pad_id = tokenizer.get_vocab()[END_OF_DOCUMENT]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for step in range(steps):
        batch = rows[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        sequences, labels = [], []
        for row in batch:
            prompt = chat_ids(tokenizer, row["prompt"], generate=True)
            whole = chat_ids(tokenizer, row["prompt"] + row["completion"], generate=False)
            sequences.append(torch.tensor(whole))
            labels.append(torch.tensor([-100] * len(prompt) + whole[len(prompt) :]))
        pad = torch.nn.utils.rnn.pad_sequence
        input_ids = pad(sequences, batch_first=True, padding_value=pad_id)
        mask = pad([torch.ones_like(s) for s in sequences], batch_first=True)
        targets = pad(labels, batch_first=True, padding_value=-100)
        loss = model(input_ids=input_ids, attention_mask=mask, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@torch.inference_mode()
def respond(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Messages],
    *,
    sample: bool,
    batch_size: int = 80,
) -> list[str]:
    """One response to each prompt, greedy or sampled at temperature 1."""
    responses: list[str] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        ids = [chat_ids(tokenizer, prompt, generate=True) for prompt in batch]
        inputs = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
        choices = {"do_sample": True, "top_k": 0, "temperature": 1.0} if sample else {}
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **choices)
        new = output[:, inputs["input_ids"].shape[1] :]
        responses += tokenizer.batch_decode(new, skip_special_tokens=True)
    return responses


def pair_up(rng: Random, example: Example, samples: list[str]) -> list[dict[str, Any]]:
    """Up to three pairs on one prompt: of two samples, a user's correction, a synthetic mistake."""
    correct = {sample: judge(sample, example.target).correct for sample in dict.fromkeys(samples)}
    good = [sample for sample, is_correct in correct.items() if is_correct]
    bad = [sample for sample, is_correct in correct.items() if not is_correct and sample.strip()]
    pairs: list[tuple[str, str, str]] = []
    if good:
        pairs += [("on_policy", rng.choice(good), rejected) for rejected in bad[:2]]
    uncompared = bad[2:] if good else bad
    if uncompared and (not good or rng.random() < 0.5):
        pairs.append(("correction", example.gold, rng.choice(uncompared)))
    if not bad or rng.random() < 0.15:
        wrong = (
            chatter(rng, example.gold)
            if rng.random() < 0.3
            else corrupt(rng, example.query, example.distractor)
        )
        pairs.append(("synthetic", example.gold, wrong))
    # A synthetic mistake may repeat a sampled one; the first source keeps the pair.
    sources: dict[tuple[str, str], str] = {}
    for source, chosen, rejected in pairs:
        sources.setdefault((chosen, rejected), source)
    return [
        {
            "prompt": example.messages,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "source": source,
        }
        for (chosen, rejected), source in sources.items()
        if not judge(rejected, example.target).correct
    ]


def production_examples(rng: Random, count: int) -> list[Example]:
    """Prompts as users send them: half in phrasings that the demonstrations do not have."""
    plain = draw_examples(rng, "train", count // 2)
    varied = draw_examples(rng, "train", count - count // 2, wording="pretraining")
    examples = plain + varied
    rng.shuffle(examples)
    return examples


def collect(model: Any, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[dict[str, Any]]:
    """All pairs of all batches; whole prompts, never single pairs, are held out."""
    rng = Random(f"freight-preferences/{seed}")
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for batch, count in PROMPTS.items():
        examples = [e for e in production_examples(rng, count) if e.prompt not in seen]
        seen.update(example.prompt for example in examples)
        prompts = [example.messages for example in examples for _ in range(SAMPLES_PER_PROMPT)]
        samples = respond(model, tokenizer, prompts, sample=True)
        for index, example in enumerate(examples):
            split = "held_out" if rng.random() < HELD_OUT_SHARE else "train"
            own = samples[index * SAMPLES_PER_PROMPT : (index + 1) * SAMPLES_PER_PROMPT]
            for pair in pair_up(rng, example, own):
                rows.append({**pair, "split": split, "batch": batch})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=DIRECTORY / "base")
    parser.add_argument("--output", type=Path, default=DIRECTORY / "preferences.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    base = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
    # Another seed than the job's own demonstrations: the feedback is about an earlier policy.
    policy = fine_tune(base, tokenizer, demonstrations(1000 + arguments.seed))
    rows = collect(policy, tokenizer, arguments.seed)
    with arguments.output.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for key, count in sorted(Counter((r["batch"], r["split"], r["source"]) for r in rows).items()):
        print(*key, count)


if __name__ == "__main__":
    main()
