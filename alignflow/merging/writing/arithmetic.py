"""The arithmetic of PEFT's merge, tensor by tensor: same order, same types, same bits.

Matched is `PeftModel.from_pretrained(base, adapter).merge_and_unload()` with its defaults
(`autocast_adapter_dtype=True`, so factors compute in float32; `safe_merge=False`, so a linear
layer's sum is rounded once), on a CPU with the same number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from alignflow.merging.planning import (
    AddBias,
    AddDelta,
    AddDora,
    AddFused,
    Dequantized,
    Factors,
    Operation,
    PutRows,
    Round,
    TensorPlan,
)
from alignflow.merging.writing.reader import Reader, torch_dtype
from alignflow.merging.writing.row_blocks import Product, RowBlocks, product_of, put_rows, threads

NF4_BLOCK = 64
EXPONENTS = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}
"""Bits of inf; those of NaN are greater."""


class Arithmetic:
    """Merges tensors one at a time, by row blocks where those are shown to give the same bits."""

    def __init__(self, block_bytes: int) -> None:
        self.reader = Reader()
        self._threads = torch.get_num_threads()
        self._by_rows = RowBlocks(self.reader, block_bytes, self._threads)
        self._fused: tuple[tuple[Factors, bool], Tensor] | None = None

    def blocks(self, plan: TensorPlan) -> Iterator[Tensor]:
        """The merged tensor in contiguous blocks of rows, in the type that is written.

        Each block is overwritten by the next.
        """
        source = self.reader.tensor(plan.source)
        if self._by_rows.can(plan):
            yield from self._by_rows.blocks(source, plan)
            return
        with threads(self._threads):
            whole = source.to(torch_dtype(plan.work), copy=True)
            for operation in plan.operations:
                whole = self._apply(whole, operation)
            whole = whole.to(torch_dtype(plan.dtype)).contiguous()
        yield whole

    def _apply(self, weight: Tensor, operation: Operation) -> Tensor:
        match operation:
            case AddDelta():
                return _added(weight, product_of(operation, self.reader).whole(), operation)
            case PutRows():
                values, indices = self.reader.factor(operation.values), operation.indices
                return put_rows(weight, values, torch.tensor(indices), slice(0, weight.shape[0]))
            case Round():
                return weight.to(torch_dtype(operation.dtype)).to(weight.dtype)
            case AddBias():
                bias = self.reader.factor(operation.factors.bias)  # type: ignore[arg-type]
                weight += bias * operation.factors.scaling
                return weight
            case AddDora():
                return self._dora(weight, operation)
            case AddFused():
                weight += self._fused_part(operation).to(weight.dtype)
                return weight
            case Dequantized():
                return dequantized(weight)
        raise TypeError(f"unknown operation {operation!r}")

    def _dora(self, weight: Tensor, operation: AddDora) -> Tensor:
        factors = operation.factors
        a, b = self.reader.factor(factors.a), self.reader.factor(factors.b)
        magnitude = self.reader.factor(factors.magnitude)  # type: ignore[arg-type]
        transposed = operation.layout != "linear"
        delta = Product(a, b, factors.scaling, transposed).whole()
        seen = (weight.T if transposed else weight) + (delta.T if transposed else delta)
        factor = magnitude / torch.linalg.norm(seen, dim=1).to(seen.dtype)
        del seen
        factor = factor.view(1, -1) if transposed else factor.view(-1, 1)
        return (factor * (weight + delta)).to(weight.dtype)

    def _fused_part(self, operation: AddFused) -> Tensor:
        key = (operation.factors, operation.swapped)
        if self._fused is None or self._fused[0] != key:
            self._fused = None  # the previous one is freed before the next is computed
            self._fused = (key, self._fused_whole(operation))
        delta = self._fused[1]
        if operation.expert is None:
            return delta
        begin, end = operation.rows or (0, delta.shape[1])
        return delta[operation.expert, begin:end]

    def _fused_whole(self, operation: AddFused) -> Tensor:
        factors, experts = operation.factors, operation.experts
        a = self.reader.factor(factors.a)
        b = self.reader.factor(factors.b)
        a = a.reshape(experts, -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, experts)
        form = "o r e, e r i -> e o i" if operation.swapped else "o r e, e r i -> e i o"
        return torch.einsum(form, b, a) * factors.scaling


def _added(weight: Tensor, delta: Tensor, operation: AddDelta) -> Tensor:
    """An embedding's delta is rounded before the sum, a linear layer's with it, as in PEFT."""
    if operation.layout == "embedding":
        return weight.add_(delta.to(weight.dtype))
    # The bits of `weight += delta`, whose mixed types take ten times as long.
    return weight.to(torch.float32).add_(delta).to(weight.dtype)


def dequantized(weight: Tensor) -> Tensor:
    """The float32 weight that a 4-bit layer (NF4, double quantization) computes with."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return dequantize_4bit(packed, state).to(torch.float32)


def is_finite(block: Tensor) -> bool:
    """Whether every value is a number: of two bytes, by the bits, for `isfinite` is slow."""
    if not block.numel() or not block.is_floating_point():
        return True
    if block.dtype in EXPONENTS:
        magnitude = block.view(torch.int16).bitwise_and(0x7FFF).max()
        return int(magnitude) < EXPONENTS[block.dtype]
    low, high = block.aminmax()
    return bool(low.isfinite()) and bool(high.isfinite())


def as_bytes(block: Tensor) -> memoryview:
    """The memory of a contiguous block."""
    return memoryview(block.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
