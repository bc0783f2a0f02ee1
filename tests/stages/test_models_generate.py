"""Generation of every kind of cache: token for token what Transformers generates from one prompt."""

from __future__ import annotations

import pytest
from toy_architectures import REAL, toy

from alignflow.models.generate import respond
from alignflow.models.toy import TOY_TOKENIZER, answered_alone, toy_texts

STEPS = 8
QUICK = ("qwen3", "gemma2", "gpt2", "gpt_oss", "qwen3_next", "falcon_h1", "mamba2", "rwkv")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.models) for n in REAL],
)
def test_padded_batches_whose_rows_end_answer_as_each_prompt_alone(name: str) -> None:
    model, prompts = toy(name), toy_texts(13, 5, 9, 2, 17, 9, 3)
    free = [answered_alone(model, prompt, STEPS) for prompt in prompts]
    model.generation_config.eos_token_id = [free[1][2], free[5][4]]
    alone = [answered_alone(model, prompt, STEPS) for prompt in prompts]
    assert len({len(response) for response in alone}) > 1
    for size in (1, 4):
        found = respond(model, TOY_TOKENIZER, prompts, max_new_tokens=STEPS, batch_size=size)
        assert [response.ids for response in found] == alone
