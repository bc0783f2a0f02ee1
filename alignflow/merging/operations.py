"""What is done to a tensor on its way from the base to the merged model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignflow.merging.adapter import Factors
from alignflow.models.headers import Located

Layout = Literal["linear", "conv1d", "embedding"]
"""How a weight lies: (out, in), (in, out), or (tokens, features)."""


@dataclass(frozen=True)
class AddDelta:
    """W += scaling · B @ A, or the sum of several weighted ones."""

    members: tuple[tuple[Factors, float], ...]
    layout: Layout
    weighted: bool = False


@dataclass(frozen=True)
class AddDora:
    """W = magnitude · (W + delta) / norm(W + delta)."""

    factors: Factors
    layout: Layout


@dataclass(frozen=True)
class AddFused:
    """Adds one expert's part, or all, of a fused parameter's delta."""

    factors: Factors
    experts: int
    swapped: bool
    """The parameter lies as (experts, out, in); else (experts, in, out)."""
    expert: int | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class AddBias:
    """bias += scaling · lora_B.bias."""

    factors: Factors


@dataclass(frozen=True)
class PutRows:
    """Rows of an embedding take the trained tokens' values."""

    values: Located
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Round:
    """The result of one adapter was saved in this type before the next was trained on it."""

    dtype: str


@dataclass(frozen=True)
class Dequantized:
    """W as the adapter saw it: quantized to NF4 and back."""


Operation = AddDelta | AddDora | AddFused | AddBias | PutRows | Round | Dequantized


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the merged model."""

    name: str
    source: Located
    """The base's tensor, or the adapter's that takes its place."""
    work: str
    """Header's word for the type that is merged in."""
    dtype: str
    """Header's word for the type that is written."""
    operations: tuple[Operation, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def copied(self) -> bool:
        """Whether the bytes are the source's."""
        return not self.operations and self.source.dtype == self.work == self.dtype
