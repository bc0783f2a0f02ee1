"""One batch through an architecture at toy size, in a child: what it would fail at, by name.

Every trial is against an independent answer: Transformers' own generation, its own logits of a row
alone, its own classifier.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from trl.trainer.utils import add_fused_lm_head

from alignflow.models import (
    NO_TOY,
    TOY_TOKENIZER,
    answered_alone,
    new_adapter,
    padded,
    quiet,
    quiet_libraries,
    read_last_attended,
    respond,
    reward_scores,
    toy_config,
    toy_model,
    toy_texts,
)
from alignflow.recipe import TuningSection
from alignflow.training.engine import Head, packing_of
from alignflow.training.rl import Sequences, backbone_states

CLOSE = 1e-4
"""Difference of two ways to compute a toy's figure, in float32, that is rounding."""
STEPS = 6
Trial = Callable[[Any], str | None]
"""Of a fresh toy: what is wrong, in a sentence."""


def try_out(payload: dict[str, Any]) -> dict[str, Any]:
    """What the architecture of a config fails at; `untried` says why no toy of it can be made."""
    quiet_libraries()
    with quiet():
        try:
            config = AutoConfig.from_pretrained(payload["directory"], trust_remote_code=False)
        except ValueError as problem:
            return {"failed": {"model": _sentence(problem)}}
        if type(config) not in AutoModelForCausalLM._model_mapping:
            missing = (
                f"Transformers has no language model for text alone of type {config.model_type}"
            )
            return {"failed": {"model": missing}}
        try:
            small = toy_config(config)
            model = toy_model(AutoModelForCausalLM, small)
            _demand_plain_pass(model)
        except NO_TOY as problem:
            return {"untried": _sentence(problem)}
        failed: dict[str, str] = {}
        if payload["attention"] in ("eager", "sdpa", "flex_attention"):  # the others need a GPU
            attended = lambda _: _attention(small, payload["attention"])  # noqa: E731
            failed |= _problem("attention", attended, model)
        for name, trial in TRIALS.items():
            failed |= _problem(name, trial, model)
        failed |= _problem("reward", lambda _: _reward(small), model)
        return {"failed": failed, "packing": packing_of(model).value}


def _problem(name: str, trial: Trial, model: Any) -> dict[str, str]:
    """What a trial says, or raises: whatever a stage would end with there."""
    try:
        problem = trial(copy.deepcopy(model))
    except Exception as error:
        problem = _sentence(error)
    return {name: problem} if problem else {}


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def _demand_plain_pass(model: Any) -> None:
    """Raises ValueError unless the toy reads a text: then it is one."""
    logits = _alone(model, toy_texts(9)[0])
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("its logits are not finite")


@torch.no_grad()
def _alone(model: Any, ids: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0].float()


def _differ(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() > CLOSE * max(1.0, float(expected.abs().max())))


def _causal(model: Any) -> str | None:
    """A later token changes nothing before it."""
    ids = toy_texts(11)[0]
    changed = _alone(model, [*ids[:-1], ids[0]])
    if _differ(changed[:-1], _alone(model, ids)[:-1]):
        return "a token's logits change with those after it"
    return None


def _training(model: Any) -> str | None:
    """TRL's loss on a padded batch is that of each row alone, and every weight has a gradient."""
    rows = toy_texts(11, 7)
    logs = [_alone(model, ids)[:-1].log_softmax(-1) for ids in rows]
    add_fused_lm_head(model)
    batch = _padded_batch(rows)
    found = model(**batch, fused_lm_head=True).log_probs
    for row, ids in enumerate(rows):
        expected = logs[row][range(len(ids) - 1), ids[1:]]
        if _differ(found[row, : len(ids) - 1], expected):
            return "the loss of a padded batch is not that of its rows"
    return _gradients(model, batch, list(model.parameters()))


def _adapters(model: Any) -> str | None:
    """Adapters on all linear layers train."""
    add_fused_lm_head(model)
    adapted = new_adapter(model, TuningSection(), "CAUSAL_LM")
    second = [p for name, p in adapted.named_parameters() if "lora_B" in name]
    return _gradients(adapted, _padded_batch(toy_texts(11, 7)), second)


def _recomputing(model: Any) -> str | None:
    """Activations may be computed twice."""
    model.gradient_checkpointing_enable()
    return _adapters(model)


def _padded_batch(rows: list[list[int]]) -> dict[str, Tensor]:
    ids, mask = padded(rows, 0, "right")
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
    }


def _gradients(model: Any, batch: dict[str, Tensor], trained: list[Tensor]) -> str | None:
    model.train()
    model(**batch, fused_lm_head=True).loss.backward()
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    if not any(bool(gradient.abs().max() > 0) for gradient in gradients):
        return "no weight gets a gradient"
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        return "a gradient is not finite"
    return None


def _generation(model: Any) -> str | None:
    """Padded batches whose rows end early answer as Transformers does to each prompt alone."""
    prompts = toy_texts(9, 4, 6, 9)
    model.generation_config.eos_token_id = None
    free = [answered_alone(model, prompt, STEPS) for prompt in prompts]
    model.generation_config.eos_token_id = [free[1][1], free[2][3]]
    expected = [answered_alone(model, prompt, STEPS) for prompt in prompts]
    found = respond(model, TOY_TOKENIZER, prompts, max_new_tokens=STEPS, batch_size=3)
    if [response.ids for response in found] != expected:
        return "responses to a padded batch are not those to each prompt alone"
    return None


def _ppo(model: Any) -> str | None:
    """States and head, taken apart, give the model's own logits, padded on both sides."""
    prompts, responses = toy_texts(5, 8), toy_texts(4, 3)
    sequences = Sequences.of(prompts, responses, pad=0, device=torch.device("cpu"))
    with torch.no_grad():
        logits = Head.of(model).logits(backbone_states(model.base_model, sequences))
    for row, ids in enumerate(p + r for p, r in zip(prompts, responses, strict=True)):
        if _differ(logits[row][sequences.attention[row].bool()], _alone(model, ids)):
            return "logits of states and head are not the model's"
    return None


def _attention(small: Any, attention: str) -> str | None:
    """Transformers refuses what an architecture does not have when it is made."""
    toy_model(AutoModelForCausalLM, copy.deepcopy(small), attention)
    return None


def _reward(small: Any) -> str | None:
    """Scores of a padded batch are those of its rows alone."""
    small = copy.deepcopy(small)
    if type(small) not in AutoModelForSequenceClassification._model_mapping:
        return f"Transformers has no classifier of type {small.model_type}, to put a score on"
    small.num_labels = 1
    model = read_last_attended(toy_model(AutoModelForSequenceClassification, small), None)
    rows = toy_texts(9, 5)
    alone, both = (reward_scores(model, rows, pad=0, batch_size=size) for size in (1, 2))
    if _differ(torch.tensor(both), torch.tensor(alone)):
        return "scores of a padded batch are not those of its rows"
    return None


TRIALS: dict[str, Trial] = {
    "order": _causal,
    "training": _training,
    "adapters": _adapters,
    "gradient_checkpointing": _recomputing,
    "generation": _generation,
    "ppo": _ppo,
}
