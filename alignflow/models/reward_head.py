"""Where and how a reward model reads its score: the one way of training, scoring and PPO."""

from __future__ import annotations

import functools
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

HEAD_WEIGHT = "score.weight"


def last_attended(values: Tensor, attention: Tensor) -> Tensor:
    """What stands at each row's last real token, [B, ...] of [B, T, ...].

    By the attention mask, [B, T], and not by the padding token's id, which may also end a response.
    """
    places = torch.arange(attention.shape[1], device=attention.device)
    last = (attention * places).argmax(dim=1)
    return values[torch.arange(len(values), device=values.device), last.to(values.device)]


def head_values(head: nn.Module, states: Tensor) -> Tensor:
    """A scalar head's values of states, [...]: in the head's own type, whatever the model's is."""
    with torch.autocast(states.device.type, enabled=False):
        return head(states.to(head.weight.dtype)).squeeze(-1).float()  # type: ignore[arg-type]


def read_last_attended(model: Any, directory: Path | None) -> Any:
    """Has a sequence classifier score the last attended token, by a head in float32; returns it.

    Where the head was rounded to another type it is read again from the weights in `directory`.
    """
    rounded = model.score.weight.dtype != torch.float32
    model.score.to(torch.float32)
    if rounded and directory is not None and (kept := _kept_head(directory)) is not None:
        model.score.weight.data.copy_(kept)
    forward = functools.wraps(type(model).forward)(_score)
    model.forward = MethodType(forward, model)
    return model


def rounded_to(model: Any, dtype: torch.dtype) -> Any:
    """`model` in another type, its scalar head, if it has one, as it is."""
    head = getattr(model, "score", None)
    kept = None if head is None else head.weight.detach().clone()
    model.to(dtype)
    if head is not None:
        head.weight.data = kept
    return model


def _score(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> SequenceClassifierOutputWithPast:
    output = model.base_model(input_ids, attention_mask=attention_mask, **options)
    attention = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    scores = last_attended(head_values(model.score, output.last_hidden_state), attention)
    return SequenceClassifierOutputWithPast(logits=scores.unsqueeze(-1))  # type: ignore[arg-type]


def _kept_head(directory: Path) -> Tensor | None:
    """The head's weight as it was saved; None where the files hold none."""
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            if HEAD_WEIGHT in tensors.keys():  # noqa: SIM118 (no dict)
                return tensors.get_tensor(HEAD_WEIGHT)
    return None
