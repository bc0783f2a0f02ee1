"""Sampling responses for PPO: one batch, left-padded prompts, finished rows dropped as they end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignflow.training.roles import Sequences


@torch.no_grad()
def sample(
    model: Any,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos: int,
    pad: int,
    seed: int,
) -> Sequences:
    """Samples one response per prompt at `temperature`.

    Args:
        model: The policy, in evaluation mode.
        prompts: Token ids.
        max_new_tokens: Longest response.
        temperature: > 0.
        eos: Token that ends a response; it is part of it.
        pad: Token that fills what is not real.
        seed: Of this call alone; the global generator is left as it is.
    """
    device = model.device
    generator = torch.Generator(device=device).manual_seed(seed)
    width = max(len(ids) for ids in prompts)
    tokens = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device)
    attention = torch.tensor(
        [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device
    )
    responses = torch.full((len(prompts), max_new_tokens), pad, device=device)
    lengths = torch.full((len(prompts),), max_new_tokens, device=device)
    rows = torch.arange(len(prompts), device=device)
    cache, fed, mask = None, tokens, attention
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
    for step in range(max_new_tokens):
        output = model(
            input_ids=fed, attention_mask=mask, position_ids=positions,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache = output.past_key_values
        drawn = _draw(output.logits[:, -1], temperature, generator)
        responses[rows, step] = drawn
        going_on = drawn != eos
        lengths[rows[~going_on]] = step + 1
        if not going_on.any():
            break
        kept = going_on.nonzero().flatten()
        if len(kept) < len(rows):
            cache.batch_select_indices(kept)
            rows, mask, positions, drawn = rows[kept], mask[kept], positions[kept], drawn[kept]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
        fed = drawn.unsqueeze(1)
    longest = int(lengths.max())
    real = torch.arange(longest, device=device) < lengths.unsqueeze(1)
    return Sequences(
        torch.cat([tokens, responses[:, :longest]], dim=1),
        torch.cat([attention, real.long()], dim=1),
        width,
    )


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
