"""A low-rank product, whole as PEFT computes it or in rows, and whether both have the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


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
class Exactness:
    """Which of the ways to compute in rows give the bits of the whole, on this machine."""

    rows: bool
    one_pass: bool


def exactness(product: Product, rows: int, count: int) -> Exactness:
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
        for chosen in blocks_of(product.height, rows):
            expected = whole[chosen]
            by_rows = by_rows and torch.equal(expected, random.rows(chosen, torch.empty))
            if one_pass:
                weight = expected * 1.7
                one_pass = torch.equal(weight + expected, random.add_rows(weight.clone(), chosen))
    return Exactness(by_rows, one_pass and by_rows)


def blocks_of(height: int, rows: int) -> Iterator[slice]:
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
