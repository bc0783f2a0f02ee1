"""Log-probabilities and entropies of response tokens without all logits in memory at once.

Only real tokens are projected to the vocabulary, in tiles; a tile's logits are computed again in
the backward pass instead of being kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TILE = 2**22
"""Logits held at once: 16 MiB in float32."""


class Head(NamedTuple):
    """A language model's output layer, and what its architecture does to the logits."""

    layer: nn.Module
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a causal language model, or of one behind adapters."""
        config = model.config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(model.get_output_embeddings(), _scale(config), softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """In float32, [..., V]."""
        logits = self.layer(hidden.to(self.layer.weight.dtype)).float()  # type: ignore[union-attr]
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


def _scale(config: Any) -> float:
    """Factor on the logits: Cohere's and Falcon-H1's multiply, Granite's divides."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)


class TokenStatistics(NamedTuple):
    """Of each response token, [B, T]; zero on padding."""

    logps: Tensor
    entropy: Tensor
    """Nats; without gradient."""


def token_statistics(
    head: Head, states: Tensor, tokens: Tensor, mask: Tensor, *, temperature: float
) -> TokenStatistics:
    """Log-probability of each token and entropy of the distribution it was drawn from.

    Args:
        head: Of the model that `states` come from.
        states: Hidden states from which each token is predicted, [B, T, H].
        tokens: [B, T].
        mask: 1.0 on real tokens, [B, T].
        temperature: Logits are divided by it.
    """
    real = mask.bool()
    hidden, wanted = states[real], tokens[real]
    width = max(1, TILE // head.layer.weight.shape[0])  # type: ignore[union-attr]
    logps, entropy = [], []
    for part, targets in zip(hidden.split(width), wanted.split(width), strict=True):
        part_logps, part_entropy = _tile(head, part, targets, temperature)
        logps.append(part_logps)
        entropy.append(part_entropy)
    return TokenStatistics(_spread(logps, real), _spread(entropy, real))


def _tile(head: Head, hidden: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    def compute(states: Tensor) -> tuple[Tensor, Tensor]:
        logs = torch.log_softmax(head.logits(states) / temperature, dim=-1)
        with torch.no_grad():
            entropy = -(logs.exp() * logs).sum(dim=-1)
        return logs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropy

    if torch.is_grad_enabled() and hidden.requires_grad:
        recomputed: Any = checkpoint(compute, hidden, use_reentrant=False)
        return recomputed
    return compute(hidden)


def _spread(parts: list[Tensor], real: Tensor) -> Tensor:
    values = torch.cat(parts) if parts else torch.zeros(0, device=real.device)
    return torch.zeros(real.shape, device=real.device).masked_scatter(real, values)
