"""Merged tensors in blocks of rows, computed in memory that is used again and again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from alignflow.merging.operations import AddDelta, PutRows, Round, TensorPlan
from alignflow.merging.products import Exactness, Product, blocks_of, exactness
from alignflow.merging.reader import Reader, torch_dtype
from alignflow.models.headers import Located

ROW_MULTIPLE = 64
"""Matrix products take rows in groups; blocks of whole groups add as the whole does."""


class RowBlocks:
    """Computes in blocks of rows what has the same bits that way.

    Args:
        reader: Of bases and adapters.
        block_bytes: Bytes of float32 at a time.
        threads: That the whole would be computed with.
    """

    def __init__(self, reader: Reader, block_bytes: int, threads: int) -> None:
        self.exact: dict[tuple[object, ...], Exactness] = {}
        self._reader = reader
        self._block_bytes = block_bytes
        self._threads = threads
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def can(self, plan: TensorPlan) -> bool:
        """Whether all that is done to a tensor can be done row by row."""
        source = plan.source
        if len(source.shape) == 0 or not plan.operations:
            return len(source.shape) > 0
        if len(source.shape) != 2:
            return False
        return all(self._exact(operation, source) for operation in plan.operations)

    def blocks(self, source: Tensor, plan: TensorPlan) -> Iterator[Tensor]:
        """The merged tensor; each block is overwritten by the next."""
        parts = [self._prepare(operation) for operation in plan.operations]
        for chosen in blocks_of(source.shape[0], self._rows(tuple(source.shape))):
            # An adapter's replacement is first loaded into the base's type, as PEFT does.
            block = self._as(source[chosen], torch_dtype(plan.work))
            for operation, prepared in zip(plan.operations, parts, strict=True):
                block = self._apply(block, operation, prepared, chosen)
            yield self._as(block, torch_dtype(plan.dtype))

    def _exact(self, operation: Any, source: Located) -> bool:
        if isinstance(operation, PutRows | Round):
            return True
        if not isinstance(operation, AddDelta):
            return False
        return self._found(product_of(operation, self._reader), source.shape).rows

    def _found(self, product: Product, shape: tuple[int, ...]) -> Exactness:
        if product.shape not in self.exact:
            self.exact[product.shape] = exactness(product, self._rows(shape), self._threads)
        return self.exact[product.shape]

    def _rows(self, shape: tuple[int, ...]) -> int:
        fitting = max(self._block_bytes // (4 * max(math.prod(shape[1:]), 1)), 1)
        return fitting - fitting % ROW_MULTIPLE if fitting > ROW_MULTIPLE else fitting

    def _prepare(self, operation: Any) -> Any:
        if isinstance(operation, AddDelta):
            return product_of(operation, self._reader)
        if isinstance(operation, PutRows):
            return self._reader.factor(operation.values), torch.tensor(operation.indices)
        return None

    def _apply(self, block: Tensor, operation: Any, prepared: Any, chosen: slice) -> Tensor:
        if isinstance(operation, AddDelta):
            return self._add(block, operation, prepared, chosen)
        if isinstance(operation, PutRows):
            values, indices = prepared
            return put_rows(self._own(block), values, indices, chosen)
        return block.to(torch_dtype(operation.dtype)).to(block.dtype)

    def _add(self, block: Tensor, operation: AddDelta, product: Product, chosen: slice) -> Tensor:
        if operation.layout == "embedding":  # rounded before the sum, as in PEFT
            delta = product.rows(chosen, self._delta).to(block.dtype)
            return self._own(block).add_(delta)
        # The bits of `weight += delta`, whose mixed types take ten times as long.
        wide = self._own(self._as(block, torch.float32))
        if self.exact[product.shape].one_pass:
            product.add_rows(wide, chosen)
        else:
            wide.add_(product.rows(chosen, self._delta))
        return self._as(wide, block.dtype)

    def _as(self, block: Tensor, dtype: torch.dtype) -> Tensor:
        """The block in another type, rounded."""
        if block.dtype == dtype:
            return block
        return self._take("block", dtype, tuple(block.shape)).copy_(block)

    def _own(self, block: Tensor) -> Tensor:
        """The block where it may be changed: not in the base's file."""
        mine = self._take("block", block.dtype, tuple(block.shape))
        return mine if mine.data_ptr() == block.data_ptr() else mine.copy_(block)

    def _delta(self, shape: tuple[int, ...]) -> Tensor:
        return self._take("delta", torch.float32, shape)

    def _take(self, use: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        needed, memory = math.prod(shape), self._memory.get((use, dtype))
        if memory is None or memory.numel() < needed:
            memory = self._memory[use, dtype] = torch.empty(needed, dtype=dtype)
        return memory[:needed].view(shape)


def product_of(operation: AddDelta, reader: Reader) -> Product:
    """A, B and scaling; of several adapters side by side, each scaled in A (PEFT's `cat`)."""
    read, transposed = reader.factor, operation.layout != "linear"
    if not operation.weighted:
        factors = operation.members[0][0]
        return Product(read(factors.a), read(factors.b), factors.scaling, transposed)
    a = torch.cat([read(f.a) * weight * f.scaling for f, weight in operation.members], dim=0)
    b = torch.cat([read(f.b) for f, _ in operation.members], dim=1)
    return Product(a, b, 1.0, transposed)


def put_rows(block: Tensor, values: Tensor, indices: Tensor, chosen: slice) -> Tensor:
    """Puts those of the values in place whose rows are in the block."""
    inside = (indices >= chosen.start) & (indices < chosen.stop)
    block[indices[inside] - chosen.start] = values[inside].to(block.dtype)
    return block
