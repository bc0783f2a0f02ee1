"""The arithmetic of PEFT's merge, tensor by tensor: same order, same types, same bits.

Matched is `PeftModel.from_pretrained(base, adapter).merge_and_unload()` with its defaults
(`autocast_adapter_dtype=True`, so factors compute in float32; `safe_merge=False`, so a linear
layer's sum is rounded once), on a CPU with the same number of threads.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignflow.merging.adapter import Factors
from alignflow.merging.headers import FLOATS, Located
from alignflow.merging.operations import (
    AddBias,
    AddDelta,
    AddDora,
    AddFused,
    Dequantized,
    PutRows,
    Round,
    TensorPlan,
)

NF4_BLOCK = 64


def torch_dtype(code: str) -> torch.dtype:
    """Torch's type for a header's word."""
    return getattr(torch, FLOATS[code])


class Reader:
    """Tensors of safetensors files as views of their memory maps: no copy, no anonymous memory."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def map(self, path: Path) -> mmap.mmap:
        """The whole file, private and writable because torch demands it; it is never written."""
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]

    def close(self, path: Path) -> None:
        """Forgets a file; its map goes when no view is left."""
        self._maps.pop(path, None)

    def view(self, located: Located) -> memoryview:
        """The bytes of one tensor."""
        return memoryview(self.map(located.path))[located.begin : located.begin + located.bytes]

    def tensor(self, located: Located) -> Tensor:
        """One tensor, not copied."""
        dtype = torch_dtype(located.dtype)
        if not located.elements:
            return torch.empty(located.shape, dtype=dtype)
        flat = torch.frombuffer(
            self.map(located.path), dtype=dtype, count=located.elements, offset=located.begin
        )
        return flat.reshape(located.shape)

    def factor(self, located: Located) -> Tensor:
        """An adapter's tensor in float32, where PEFT computes."""
        return self.tensor(located).to(torch.float32)


class Arithmetic:
    """Merges tensors one at a time, by row blocks where those are shown to give the same bits."""

    def __init__(self, reader: Reader, block_bytes: int) -> None:
        self.reader = reader
        self.block_bytes = block_bytes
        self.threads = torch.get_num_threads()
        self.blocks_exact: dict[tuple[Any, ...], bool] = {}
        self._fused: tuple[tuple[Factors, bool], Tensor] | None = None

    def blocks(self, plan: TensorPlan) -> Iterator[Tensor]:
        """The merged tensor, in contiguous blocks of rows, in the type that is written."""
        source = self.reader.tensor(plan.source)
        if self._by_rows(plan):
            yield from self._row_blocks(source, plan)
            return
        with threads(self.threads):
            whole = self._start(source, plan)
            for operation in plan.operations:
                whole = self._apply_whole(whole, operation)
            whole = whole.to(torch_dtype(plan.dtype)).contiguous()
        yield whole

    def _row_blocks(self, source: Tensor, plan: TensorPlan) -> Iterator[Tensor]:
        parts = [self._prepare(operation) for operation in plan.operations]
        rows = self._rows_per_block(source)
        for begin in range(0, source.shape[0], rows):
            chosen = slice(begin, min(begin + rows, source.shape[0]))
            block = self._start(source[chosen], plan)
            for operation, prepared in zip(plan.operations, parts, strict=True):
                block = self._apply_rows(block, operation, prepared, chosen)
            yield block.to(torch_dtype(plan.dtype))

    def _start(self, source: Tensor, plan: TensorPlan) -> Tensor:
        # An adapter's replacement is first loaded into the base's type, as PEFT does.
        return source.to(torch_dtype(plan.work), copy=True)

    def _rows_per_block(self, source: Tensor) -> int:
        width = max(source.numel() // max(source.shape[0], 1), 1) if source.dim() else 1
        return max(self.block_bytes // (4 * width), 1)

    def _by_rows(self, plan: TensorPlan) -> bool:
        source = plan.source
        if len(source.shape) == 0:
            return False
        if not plan.operations:
            return True
        if len(source.shape) != 2:
            return False
        return all(self._exact_by_rows(operation, source) for operation in plan.operations)

    def _exact_by_rows(self, operation: Any, source: Located) -> bool:
        if isinstance(operation, PutRows | Round):
            return True
        if not isinstance(operation, AddDelta):
            return False
        a, b, _ = prepared = self._stacked(operation)
        transposed = operation.layout != "linear"
        key = (transposed, a.shape, b.shape)
        if key not in self.blocks_exact:
            rows = self._rows_per_block(self.reader.tensor(source))
            self.blocks_exact[key] = _rows_are_exact(
                prepared, transposed, source.shape[0], rows, self.threads
            )
        return self.blocks_exact[key]

    def _prepare(self, operation: Any) -> Any:
        if isinstance(operation, AddDelta):
            return self._stacked(operation)
        if isinstance(operation, PutRows):
            return self.reader.factor(operation.values), torch.tensor(operation.indices)
        return None

    def _stacked(self, operation: AddDelta) -> tuple[Tensor, Tensor, float]:
        """A, B and scaling; of several adapters side by side, each scaled in A (PEFT's `cat`)."""
        read = self.reader.factor
        if not operation.weighted:
            factors = operation.members[0][0]
            return read(factors.a), read(factors.b), factors.scaling
        a = torch.cat([read(f.a) * weight * f.scaling for f, weight in operation.members], dim=0)
        b = torch.cat([read(f.b) for f, _ in operation.members], dim=1)
        return a, b, 1.0

    def _apply_rows(self, block: Tensor, operation: Any, prepared: Any, rows: slice) -> Tensor:
        if isinstance(operation, AddDelta):
            delta = _delta_rows(prepared, operation.layout != "linear", rows)
            return _added(block, delta, operation)
        if isinstance(operation, PutRows):
            values, indices = prepared
            inside = (indices >= rows.start) & (indices < rows.stop)
            block[indices[inside] - rows.start] = values[inside].to(block.dtype)
            return block
        return _rounded(block, operation)

    def _apply_whole(self, weight: Tensor, operation: Any) -> Tensor:
        match operation:
            case AddDelta():
                delta = _delta_whole(self._stacked(operation), operation.layout != "linear")
                return _added(weight, delta, operation)
            case PutRows():
                return self._apply_rows(
                    weight, operation, self._prepare(operation), slice(0, weight.shape[0])
                )
            case Round():
                return _rounded(weight, operation)
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
        product = b @ a
        delta = (product.T if transposed else product) * factors.scaling
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


def _rounded(weight: Tensor, operation: Round) -> Tensor:
    return weight.to(torch_dtype(operation.dtype)).to(weight.dtype)


def _delta_whole(prepared: tuple[Tensor, Tensor, float], transposed: bool) -> Tensor:
    a, b, scaling = prepared
    product = torch.mm(b, a).mul_(scaling)
    return product.T if transposed else product


def _delta_rows(prepared: tuple[Tensor, Tensor, float], transposed: bool, rows: slice) -> Tensor:
    a, b, scaling = prepared
    if transposed:
        return torch.mm(b, a[:, rows]).mul_(scaling).T
    return torch.mm(b[rows], a).mul_(scaling)


def _rows_are_exact(
    prepared: tuple[Tensor, Tensor, float], transposed: bool, height: int, rows: int, count: int
) -> bool:
    """Whether blocks of rows have the bits of the whole product, on this machine, in this shape.

    The order in which a matrix product adds does not depend on its values, so equality on one
    tensor with full mantissas shows it for all of the same shape.
    """
    a, b, scaling = prepared
    generator = torch.Generator().manual_seed(0)
    random = (
        torch.randn(a.shape, generator=generator),
        torch.randn(b.shape, generator=generator),
        scaling,
    )
    with threads(count):
        whole = _delta_whole(random, transposed)
    with threads(1):
        return all(
            torch.equal(
                whole[begin : begin + rows],
                _delta_rows(random, transposed, slice(begin, min(begin + rows, height))),
            )
            for begin in range(0, height, rows)
        )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Computes with so many threads; one leaves the other cores to hashing and writing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def dequantized(weight: Tensor) -> Tensor:
    """The float32 weight that a 4-bit layer (NF4, double quantization) computes with."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return dequantize_4bit(packed, state).to(torch.float32)


def is_finite(block: Tensor) -> bool:
    """Whether every value is a number; `isfinite` takes thirty times as long."""
    if not block.numel() or not block.is_floating_point():
        return True
    low, high = block.aminmax()
    return bool(low.isfinite()) and bool(high.isfinite())


def as_bytes(block: Tensor) -> memoryview:
    """The memory of a contiguous block."""
    return memoryview(block.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
