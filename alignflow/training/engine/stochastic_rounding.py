"""Training bfloat16 weights: steps in float32 whose results are rounded up or down by chance.

Rounded to the nearest, an update of less than half the distance between two bfloat16 numbers (one
part in 256) is lost. Rounded up with the probability of the part that is cut off, it is kept on
average. (Zamirai et al. 2020, "Revisiting BFloat16 Training".)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

LOW_BITS = 16
"""Bits of a float32 that a bfloat16 does not have."""


def rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """bfloat16 of float32 `values`, equal to them in expectation.

    The cut off bits count in units of the last one kept, so a random number below that unit is added
    before they are cut off. Infinite and NaN stay what they are.
    """
    noise = torch.randint(
        1 << LOW_BITS, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    bits = noise.add_(values.view(torch.int32)).bitwise_and_(-1 << LOW_BITS)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).to(torch.bfloat16)


class StochasticRounding(Optimizer):
    """Steps another optimizer on float32 copies of bfloat16 weights, one weight at a time.

    Moments are in float32 (or the 8 bits of the other optimizer). Beside them only the copies of the
    largest weight and its gradient are held. The random generator is its own and part of its state,
    so that a resumed run rounds as the uninterrupted one.

    Args:
        inner: Takes the steps. Its groups and its state are this optimizer's.
        seed: Of the generator; the same on every process, so that replicas stay equal.
    """

    def __init__(self, inner: Optimizer, seed: int) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner
        device = self.param_groups[0]["params"][0].device if self._parameters() else "cpu"
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = {p: p.grad for p in self._parameters() if p.grad is not None}
        for parameter in gradients:
            parameter.grad = None
        for parameter, gradient in gradients.items():
            self._step_one(parameter, gradient)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss

    def _step_one(self, parameter: Tensor, gradient: Tensor) -> None:
        weights = parameter.data
        if weights.dtype == torch.bfloat16:
            parameter.data = weights.float()
            parameter.grad = gradient.float()
            self.inner.step()
            weights.copy_(rounded(parameter.data, self._generator))
            parameter.grad = None
            parameter.data = weights
        else:
            parameter.grad = gradient
            self.inner.step()
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The other optimizer's state, and the generator's."""
        return {**self.inner.state_dict(), "rounding": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state; moments keep their type."""
        rest = dict(state_dict)
        self._generator.set_state(rest.pop("rounding").cpu())
        with self._as_float32():
            self.inner.load_state_dict(rest)
        self._share()

    @contextmanager
    def _as_float32(self) -> Iterator[None]:
        """Lets weights pass for float32: on loading, torch casts moments to the weight's type."""
        parameters = self._parameters()
        weights = [parameter.data for parameter in parameters]
        for parameter in parameters:
            parameter.data = torch.empty(0, dtype=torch.float32, device=parameter.device)
        try:
            yield
        finally:
            for parameter, data in zip(parameters, weights, strict=True):
                parameter.data = data
