"""Rounding by chance: right on average, and the same again after a resume."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from alignflow.training.engine.stochastic_rounding import StochasticRounding, rounded

DRAWS = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("value", [1.001, -1.001, 3.14159, 1e-30, -65519.7, 0.99999, 1.2e-40])
def test_the_mean_is_the_value_and_only_its_two_neighbours_occur(value: float) -> None:
    """Of n draws the mean's standard error is at most half the neighbours' distance / sqrt(n)."""
    exact = torch.full((DRAWS,), value)
    found = rounded(exact, generator())
    down = (exact[:1].view(torch.int32) & -65536).view(torch.float32).double()
    up = ((exact[:1].view(torch.int32) & -65536) + 65536).view(torch.float32).double()
    assert set(found.double().tolist()) == {down.item(), up.item()}
    distance = (up - down).abs().item()
    error = (found.double().mean() - exact[0].double()).abs().item()
    assert error < 4 * distance / 2 / DRAWS**0.5


def test_the_mean_over_many_values_has_no_bias() -> None:
    values = torch.randn(200_000, generator=generator(1))
    relative = (rounded(values, generator(2)).double() - values.double()) / values.abs().double()
    assert abs(relative.mean().item()) < 4 * relative.std().item() / len(values) ** 0.5
    nearest = (values.bfloat16().double() - values.double()).abs() / values.abs().double()
    assert relative.abs().max() <= 2.01 * nearest.max()


def test_what_bfloat16_can_hold_stays_and_what_is_not_finite_too() -> None:
    kept = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**127, float("inf"), -float("inf")])
    for seed in range(20):
        assert torch.equal(rounded(kept, generator(seed)).float(), kept.bfloat16().float())
    odd = torch.full((4096,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert rounded(odd, generator()).isnan().all()


def trained(optimizer: Optimizer, weight: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()


def test_updates_too_small_for_bfloat16_arrive_on_average() -> None:
    """100 steps of 1e-4 from 1.0, where bfloat16 numbers are 1/256 apart below it."""
    nearest = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    trained(torch.optim.SGD([nearest], lr=1e-4), nearest, 100)
    assert (nearest == 1).all()
    weight = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    trained(StochasticRounding(torch.optim.SGD([weight], lr=1e-4), seed=0), weight, 100)
    assert weight.dtype == torch.bfloat16
    assert weight.float().mean().item() == pytest.approx(0.99, abs=5e-4)


def eight_bits(groups: Any) -> Optimizer:
    from bitsandbytes.optim.adamw import AdamW

    return AdamW(groups, lr=1e-2, optim_bits=8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [lambda groups: torch.optim.AdamW(groups, lr=1e-2), eight_bits])
def test_moments_stay_wide_and_a_resumed_run_rounds_as_the_whole_one(kind: Any) -> None:
    def step(optimizer: Optimizer, weights: list[torch.nn.Parameter], at: int) -> None:
        noise = generator(at)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=noise).to(weight.dtype)
        optimizer.step()

    def made(values: list[torch.Tensor]) -> tuple[StochasticRounding, list[torch.nn.Parameter]]:
        weights = [torch.nn.Parameter(value.clone()) for value in values]
        return StochasticRounding(kind([{"params": weights}]), seed=3), weights

    start = [torch.randn(96, 64, generator=generator()).bfloat16(), torch.ones(5)]
    whole, weights = made(start)
    for at in range(4):
        step(whole, weights, at)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed, copies = made([weight.detach() for weight in weights])
    resumed.load_state_dict(torch.load(file, weights_only=True))
    state = resumed.state[copies[0]]
    assert torch.bfloat16 not in {v.dtype for v in state.values() if torch.is_tensor(v)}
    for at in range(4, 8):
        step(whole, weights, at)
        step(resumed, copies, at)
    assert all(torch.equal(a, b) for a, b in zip(weights, copies, strict=True))
    other, again = made(start)
    other._generator.manual_seed(4)
    for at in range(8):
        step(other, again, at)
    assert not torch.equal(again[0], weights[0])
    assert weights[1].dtype == torch.float32


def test_it_is_an_optimizer_to_a_scheduler() -> None:
    weight = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = StochasticRounding(torch.optim.SGD([weight], lr=1.0), seed=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    trained(optimizer, weight, 1)
    schedule.step()
    assert optimizer.inner.param_groups[0]["lr"] == 0.5
    optimizer.load_state_dict(optimizer.state_dict())
    schedule.step()
    assert optimizer.inner.param_groups[0]["lr"] == 0.25
    optimizer.zero_grad()
    assert weight.grad is None
