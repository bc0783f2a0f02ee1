"""Likelihoods and reward scores of given texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from alignflow.models.generate import Row, accepted_arguments, padded


@torch.inference_mode()
def response_logps(
    model: Any,
    prompts: Sequence[Row],
    responses: Sequence[Row],
    *,
    batch_size: int,
    temperature: float = 1.0,
) -> list[float]:
    """Log p of each response after its prompt, its end token included, summed over tokens."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    longest = max((len(response) for response in responses), default=0)

    def score(places: list[int]) -> list[float]:
        chosen = [rows[place] for place in places]
        logps = _token_logps(model, chosen, keep=longest, temperature=temperature, side="left")
        return [
            float(logps[row, logps.shape[1] - len(responses[place]) :].sum())
            for row, place in enumerate(places)
        ]

    return _in_batches(rows, batch_size, score)


@torch.inference_mode()
def text_losses(model: Any, rows: Sequence[Row], *, batch_size: int) -> list[float]:
    """Loss, -log p, of each row's tokens after its first, summed over tokens."""

    def score(places: list[int]) -> list[float]:
        chosen = [rows[place] for place in places]
        logps = _token_logps(model, chosen, keep=None, temperature=1.0, side="right")
        return [-float(logps[row, : len(ids) - 1].sum()) for row, ids in enumerate(chosen)]

    return _in_batches(rows, batch_size, score)


@torch.inference_mode()
def reward_scores(model: Any, rows: Sequence[Row], *, pad: int, batch_size: int) -> list[float]:
    """The reward model's score of each row of prompt and response."""
    model.eval()

    def score(places: list[int]) -> list[float]:
        ids, mask = padded([rows[place] for place in places], pad, "right")
        output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
        return output.logits[:, 0].float().tolist()

    return _in_batches(rows, batch_size, score)


def _token_logps(
    model: Any,
    rows: Sequence[Row],
    *,
    keep: int | None,
    temperature: float,
    side: Literal["left", "right"],
) -> Tensor:
    """Log p of each token after the first, of the last `keep` only, [B, T - 1 or keep]."""
    model.eval()
    ids, mask = padded(rows, 0, side)
    ids, mask = ids.to(model.device), mask.to(model.device)
    arguments = accepted_arguments(model)
    optional: dict[str, Any] = {}
    if "position_ids" in arguments:
        optional["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_(min=0)
    if keep is not None and "logits_to_keep" in arguments:
        optional["logits_to_keep"] = min(keep + 1, ids.shape[1])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **optional).logits
    logits = logits[:, :-1].float() / temperature
    targets = ids[:, ids.shape[1] - logits.shape[1] :]
    return logits.log_softmax(dim=-1).gather(2, targets.unsqueeze(2)).squeeze(2).double()


def _in_batches(
    rows: Sequence[Row], batch_size: int, score: Callable[[list[int]], list[float]]
) -> list[float]:
    """What `score` gives the rows in some places, for all; equally long rows share a batch."""
    order = sorted(range(len(rows)), key=lambda place: (-len(rows[place]), place))
    scores: dict[int, float] = {}
    while order:
        places = order[:batch_size]
        try:
            scores.update(zip(places, score(places), strict=True))
        except torch.OutOfMemoryError:
            if len(places) == 1:
                raise
            batch_size = len(places) // 2
            continue
        order = order[len(places) :]
    return [scores[place] for place in range(len(rows))]
