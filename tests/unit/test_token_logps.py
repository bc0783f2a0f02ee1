"""Log-probabilities in tiles are those of all logits at once, gradients too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from alignflow.training.engine import token_logps
from alignflow.training.engine.token_logps import Head, token_statistics


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_tiles_give_what_all_logits_at_once_give(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_logps, "TILE", 33)  # three tokens of eleven logits a tile
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(5, 11)
    head = Head(layer, 0.5, softcap)
    states = torch.randn(4, 6, 5, generator=generator).requires_grad_()
    tokens = torch.randint(11, (4, 6), generator=generator)
    mask = (torch.rand(4, 6, generator=generator) > 0.3).float()
    found = token_statistics(head, states, tokens, mask, temperature=0.7)
    found.logps.sum().backward()
    gradients = [states.grad, layer.weight.grad]
    states.grad = layer.weight.grad = None

    logits = layer(states) * 0.5
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    whole = torch.distributions.Categorical(logits=logits / 0.7)
    expected = whole.log_prob(tokens) * mask
    expected.sum().backward()
    torch.testing.assert_close(found.logps, expected)
    torch.testing.assert_close(found.entropy, whole.entropy().detach() * mask)
    torch.testing.assert_close(gradients, [states.grad, layer.weight.grad])


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 1.0),
        ({"logit_scale": 0.0625}, 0.0625),
        ({"lm_head_multiplier": 2.0}, 2.0),
        ({"logits_scaling": 8.0, "model_type": "granite"}, 0.125),
        ({"logits_scaling": 8.0, "model_type": "hyperclovax"}, 8.0),
    ],
)
def test_architectures_that_scale_their_logits_are_known(
    config: dict[str, object], scale: float
) -> None:
    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(**config)),
        get_output_embeddings=lambda: torch.nn.Linear(2, 3),
    )
    assert Head.of(model).scale == scale
