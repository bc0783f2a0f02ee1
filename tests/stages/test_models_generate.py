"""Generation of every kind of cache: token for token what Transformers generates from one prompt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_architectures import REAL, toy

from alignflow.models.generate import respond
from alignflow.models.toy import toy_texts

TOKENIZER = SimpleNamespace(eos_token_id=None, pad_token_id=0, init_kwargs={})
STEPS = 8
QUICK = ("qwen3", "gemma2", "gpt2", "gpt_oss", "qwen3_next", "falcon_h1", "mamba2", "rwkv")


def by_transformers(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    ends = model.generation_config.eos_token_id
    options = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0, "eos_token_id": ends}
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.models) for n in REAL],
)
def test_padded_batches_whose_rows_end_answer_as_each_prompt_alone(name: str) -> None:
    model, prompts = toy(name), toy_texts(13, 5, 9, 2, 17, 9, 3)
    free = [by_transformers(model, prompt) for prompt in prompts]
    model.generation_config.eos_token_id = [free[1][2], free[5][4]]
    alone = [by_transformers(model, prompt) for prompt in prompts]
    assert len({len(response) for response in alone}) > 1
    for size in (1, 4):
        found = respond(model, TOKENIZER, prompts, max_new_tokens=STEPS, batch_size=size)
        assert [response.ids for response in found] == alone
