"""Generation: token for token what Transformers generates, in any batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignflow.errors import EvaluationError
from alignflow.models.generate import Response, answers, respond
from alignflow.models.scoring import response_logps, text_losses


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(tiny_base))


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    """The tiny model with its weights scaled up, so that its greedy choices are not ties."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    texts = [f"what colour is thing {'x' * (n % 5)} {n}?" for n in range(11)]
    return [tokenizer(text).input_ids for text in texts]


def by_transformers(model: Any, prompt: list[int], steps: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_greedy_is_what_transformers_generates_token_by_token(
    model: Any, tokenizer: Any, prompts: list[list[int]], batch_size: int
) -> None:
    found = respond(model, tokenizer, prompts, max_new_tokens=40, batch_size=batch_size)
    assert [r.ids for r in found] == [by_transformers(model, prompt, 40) for prompt in prompts]


def test_rows_end_at_any_end_token_and_leave_the_batch(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    free = respond(model, tokenizer, prompts, max_new_tokens=30)
    stop = free[3].ids[4]
    stopping = copy.deepcopy(model)
    stopping.generation_config.eos_token_id = [1, stop]
    found = respond(stopping, tokenizer, prompts, max_new_tokens=30, batch_size=5)
    for one, unstopped in zip(found, free, strict=True):
        cut = unstopped.ids.index(stop) + 1 if stop in unstopped.ids else len(unstopped.ids)
        assert one.ids == unstopped.ids[:cut]
        assert one.ended == (stop in unstopped.ids or unstopped.ended)
    assert found[3].length == len(found[3].ids) - 1


def test_further_prompts_take_the_places_of_those_that_ended(
    model: Any, tokenizer: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half of the answers cut short, whole batches one after another would take 3 * 30 steps."""
    free = respond(model, tokenizer, prompts, max_new_tokens=30)
    stopping = copy.deepcopy(model)
    stopping.generation_config.eos_token_id = [1, *{r.ids[2] for r in free[::2]}]
    alone = [respond(stopping, tokenizer, [p], max_new_tokens=30)[0] for p in prompts]
    sizes: list[int] = []
    forward = type(model).forward

    def counted(self: Any, input_ids: torch.Tensor, **rest: Any) -> Any:
        sizes.append(len(input_ids))
        return forward(self, input_ids=input_ids, **rest)

    counted.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model), "forward", counted)
    assert respond(stopping, tokenizer, prompts, max_new_tokens=30, batch_size=4) == alone
    assert max(sizes) <= 4
    order = sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), n))
    chunks = [order[start : start + 4] for start in range(0, len(order), 4)]
    assert len(sizes) < sum(max(len(alone[n].ids) for n in chunk) for chunk in chunks)


def test_samples_depend_on_the_seed_and_not_on_the_batch(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    def sample(seed: int, batch_size: int) -> list[Response]:
        return respond(
            model,
            tokenizer,
            prompts,
            max_new_tokens=12,
            batch_size=batch_size,
            temperature=1.0,
            seed=seed,
        )

    assert sample(0, 3) == sample(0, 64)
    assert sample(0, 64) != sample(1, 64)


def test_samples_follow_the_models_distribution(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    many = [prompts[0]] * 4000
    found = respond(model, tokenizer, many, max_new_tokens=1, batch_size=2000, temperature=2.0)
    counts = torch.zeros(len(tokenizer))
    for response in found:
        counts[response.ids[0]] += 1
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompts[0]])).logits[0, -1]
    expected = torch.softmax(logits / 2.0, dim=-1)
    assert (counts / 4000 - expected).abs().sum() < 0.25
    assert (counts / 4000 - expected).abs().max() < 0.03


def test_text_comes_in_the_order_of_the_prompts_without_special_tokens(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    done: list[int] = []
    responses = respond(
        model, tokenizer, prompts, max_new_tokens=8, batch_size=4, progress=done.append
    )
    texts = answers(tokenizer, [r.ids for r in responses])
    alone = [respond(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert texts == answers(tokenizer, [r.ids for r in alone])
    assert done == [4, 8, 11]
    assert not any("</s>" in text for text in texts)


def test_a_batch_that_does_not_fit_is_halved(
    model: Any, tokenizer: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = respond(model, tokenizer, prompts, max_new_tokens=4)
    forward, sizes = type(model).forward, []

    def scarce(self: Any, input_ids: torch.Tensor, **rest: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, input_ids=input_ids, **rest)

    scarce.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model), "forward", scarce)
    assert respond(model, tokenizer, prompts, max_new_tokens=4) == expected
    assert sizes[0] == 11 and max(sizes[3:]) <= 3


def test_logits_that_are_not_finite_and_empty_prompts_are_errors(
    model: Any, tokenizer: Any
) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(EvaluationError, match="not finite"):
        respond(broken, tokenizer, [[5, 6]], max_new_tokens=2)
    with pytest.raises(EvaluationError, match="no tokens"):
        respond(model, tokenizer, [[]], max_new_tokens=2)


def test_likelihoods_are_those_of_one_row_alone(model: Any, prompts: list[list[int]]) -> None:
    responses = [prompt[: 2 + place % 3] for place, prompt in enumerate(prompts)]
    found = response_logps(model, prompts, responses, batch_size=4, temperature=1.5)
    losses = text_losses(model, prompts, batch_size=4)
    for place, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *response]])
            logps = (model(input_ids=ids).logits[0, :-1].double() / 1.5).log_softmax(-1)
            picked = logps[range(len(ids[0]) - 1), ids[0, 1:]]
            alone = torch.tensor([prompt])
            loss = model(input_ids=alone, labels=alone).loss * (len(prompt) - 1)
        assert found[place] == pytest.approx(float(picked[-len(response) :].sum()), abs=1e-3)
        assert losses[place] == pytest.approx(float(loss), abs=1e-2)
