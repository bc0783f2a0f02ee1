"""Low-rank products, and whole tensors, in blocks of rows, where those have the same bits.

Blocks are computed in memory that is used again and again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignflow.merging.planning import AddDelta, Operation, PutRows, Round, TensorPlan
from alignflow.merging.writing.reader import Reader, torch_dtype


@dataclass(frozen=True)
class Product:
    """scaling · B @ A, transposed where the weight lies as (in, out)."""

    a: Tensor
    b: Tensor
    scaling: float
    transposed: bool

    @property
    def height(self) -> int:
        """Rows of the weight that it is added to."""
        return self.a.shape[1] if self.transposed else self.b.shape[0]

    @property
    def shape(self) -> tuple[object, ...]:
        """What the order of its additions depends on."""
        return (self.transposed, tuple(self.a.shape), tuple(self.b.shape), self.one_pass)

    @property
    def one_pass(self) -> bool:
        """Whether scaling and adding within the product may round as they do one after another.

        A factor of 1, 2, 4, ... is exact, so that the sum alone is rounded.
        """
        exact = self.scaling >= 1 and math.frexp(self.scaling)[0] == 0.5
        return exact and not self.transposed

    def whole(self) -> Tensor:
        """All of it, as PEFT computes it."""
        product = torch.mm(self.b, self.a).mul_(self.scaling)
        return product.T if self.transposed else product

    def rows(self, chosen: slice, take: Take) -> Tensor:
        """Some of its rows, in memory of `take`."""
        if self.transposed:
            a = self.a[:, chosen]
            out = take((self.b.shape[0], a.shape[1]))
            return torch.mm(self.b, a, out=out).mul_(self.scaling).T
        b = self.b[chosen]
        return torch.mm(b, self.a, out=take((b.shape[0], self.a.shape[1]))).mul_(self.scaling)

    def add_rows(self, weight: Tensor, chosen: slice) -> Tensor:
        """Adds some of its rows in one pass."""
        return weight.addmm_(self.b[chosen], self.a, alpha=self.scaling)


Take = Callable[[tuple[int, ...]], Tensor]
"""Makes a float32 tensor of a shape, its content arbitrary."""


@dataclass(frozen=True)
class _Exactness:
    """Which of the ways to compute in rows give the bits of the whole, on this machine."""

    rows: bool
    one_pass: bool


def _exactness_of(product: Product, rows: int, count: int) -> _Exactness:
    """Compares blocks of rows on one thread with the whole product on `count` threads.

    The order in which a matrix product adds does not depend on its values, so equality on one
    tensor with full mantissas shows it for all of the same shape.
    """
    generator = torch.Generator().manual_seed(0)
    random = Product(
        torch.randn(product.a.shape, generator=generator),
        torch.randn(product.b.shape, generator=generator),
        product.scaling,
        product.transposed,
    )
    with threads(count):
        whole = random.whole()
    by_rows, one_pass = True, product.one_pass
    with threads(1):
        for chosen in _blocks_of(product.height, rows):
            expected = whole[chosen]
            by_rows = by_rows and torch.equal(expected, random.rows(chosen, torch.empty))
            if one_pass:
                weight = expected * 1.7
                one_pass = torch.equal(weight + expected, random.add_rows(weight.clone(), chosen))
    return _Exactness(by_rows, one_pass and by_rows)


def _blocks_of(height: int, rows: int) -> Iterator[slice]:
    """Slices of about `rows` rows; a short rest joins the last, for few rows add in another order."""
    begin = 0
    while begin < height:
        end = begin + rows if height - begin >= rows + (rows + 1) // 2 else height
        yield slice(begin, end)
        begin = end


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Computes with so many threads; one leaves the other cores to hashing and writing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


ROW_MULTIPLE = 64
"""Matrix products take rows in groups; blocks of whole groups add as the whole does."""


class RowBlocks:
    """Computes in blocks of rows what has the same bits that way as whole on `threads` threads.

    A block has `block_bytes` of float32.
    """

    def __init__(self, reader: Reader, block_bytes: int, threads: int) -> None:
        self._exact_ways: dict[tuple[object, ...], _Exactness] = {}
        self._reader = reader
        self._block_bytes = block_bytes
        self._threads = threads
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def can(self, plan: TensorPlan) -> bool:
        """Whether all that is done to a tensor can be done row by row."""
        shape, operations = plan.shape, plan.operations
        if not operations:
            return len(shape) > 0
        return len(shape) == 2 and all(self._exact(operation, shape) for operation in operations)

    def blocks(self, source: Tensor, plan: TensorPlan) -> Iterator[Tensor]:
        """The merged tensor; each block is overwritten by the next."""
        steps = [self._step(operation) for operation in plan.operations]
        for chosen in _blocks_of(source.shape[0], self._rows(tuple(source.shape))):
            # An adapter's replacement is first loaded into the base's type, as PEFT does.
            block = self._as(source[chosen], torch_dtype(plan.work))
            for step in steps:
                block = step(block, chosen)
            yield self._as(block, torch_dtype(plan.dtype))

    def _exact(self, operation: Operation, shape: tuple[int, ...]) -> bool:
        if not isinstance(operation, AddDelta):
            return isinstance(operation, PutRows | Round)
        product = product_of(operation, self._reader)
        if product.shape not in self._exact_ways:
            ways = _exactness_of(product, self._rows(shape), self._threads)
            self._exact_ways[product.shape] = ways
        return self._exact_ways[product.shape].rows

    def _rows(self, shape: tuple[int, ...]) -> int:
        fitting = max(self._block_bytes // (4 * max(math.prod(shape[1:]), 1)), 1)
        return fitting - fitting % ROW_MULTIPLE if fitting > ROW_MULTIPLE else fitting

    def _step(self, operation: Any) -> Callable[[Tensor, slice], Tensor]:
        """What an operation makes of a block that lies at a slice of the rows."""
        if isinstance(operation, AddDelta):
            return partial(self._add, operation, product_of(operation, self._reader))
        if isinstance(operation, PutRows):
            values, indices = self._reader.factor(operation.values), torch.tensor(operation.indices)
            return lambda block, chosen: put_rows(self._own(block), values, indices, chosen)
        return lambda block, _: block.to(torch_dtype(operation.dtype)).to(block.dtype)

    def _add(self, operation: AddDelta, product: Product, block: Tensor, chosen: slice) -> Tensor:
        if operation.layout == "embedding":  # rounded before the sum, as in PEFT
            delta = product.rows(chosen, self._delta).to(block.dtype)
            return self._own(block).add_(delta)
        # The bits of `weight += delta`, whose mixed types take ten times as long.
        wide = self._own(self._as(block, torch.float32))
        if self._exact_ways[product.shape].one_pass:
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
