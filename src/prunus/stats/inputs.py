"""Sums over what each weight reads, entry by entry of its inputs, laid so that they broadcast to the weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from prunus.stats.products import Read
from prunus.types import wide

OfInputs = Callable[[Tensor], "Tensor | None"]
"""x (samples, inputs, *positions) -> (inputs, k): k sums for each input; None leaves this product out."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What one weight read over the data; each table broadcasts to the weight.

    `count` values were seen of each input (samples times positions; 1 where none was); `total` and `squares` are the
    sums of x and x², `size` that of |x|, `nonzero` how many were not zero. `spread` turns a value for each input into
    saliencies whose sum over what reads that input is the value.
    """

    count: Tensor
    total: Tensor
    squares: Tensor
    size: Tensor
    nonzero: Tensor
    spread: float

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        """Mean squared distance from the mean; never below zero."""
        return (self.squares / self.count - self.mean.square()).clamp(min=0)


def moments(x: Tensor) -> Tensor:
    """The sums that `Seen` holds."""
    flat = wide(x).transpose(0, 1).flatten(1)
    count = flat.new_full((len(flat),), flat.shape[1])
    return torch.stack([count, flat.sum(1), flat.square().sum(1), flat.abs().sum(1), (flat != 0).sum(1)], 1)


class Table:
    """Sums for the inputs of one weight, of this shape; added up in float64.

    It is one entry long in each dimension along which all of the weight reads the same.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.channels = 0
        self._sums = torch.zeros(())
        self._along: set[int] = set()

    def add(self, read: Read, sums: Tensor) -> None:
        """`sums`: (inputs, k)."""
        self.channels = max(self.channels, len(sums))
        piece, part = _laid(read, sums.double()), read.part
        if not self._sums.ndim:
            self._sums = piece.new_zeros([*(1 for _ in self.shape), sums.shape[1]])
        self._along |= {read.into} if read.groups == 1 else {read.into, read.out or 0}
        own = [d for d, n in enumerate(self.shape) if d in self._along or part.sizes[d] < n or self._sums.shape[d] > 1]
        self._sums = self._sums.expand(*(n if d in own else 1 for d, n in enumerate(self.shape)), -1).clone()
        box = [slice(s, s + n) for s, n in zip(part.starts, part.sizes, strict=True)]
        self._sums[tuple(each if d in own else slice(None) for d, each in enumerate(box))] += piece

    def tables(self) -> tuple[Tensor, ...]:
        """The k sums; where several parts of a weight have read the same, once."""
        sums = self._sums
        for dim in set(range(len(self.shape))) - self._along:
            first = sums.narrow(dim, 0, 1)
            if bool((sums == first).all()):
                sums = first
        return sums.unbind(-1)

    @property
    def spread(self) -> float:
        return self.channels / prod(self.shape)


def read(table: Table) -> Seen:
    """A table of `moments` by their names."""
    count, total, squares, size, nonzero = table.tables()
    return Seen(count.clamp(min=1), total, squares, size, nonzero, table.spread)


def _laid(read: Read, sums: Tensor) -> Tensor:
    """(inputs, k) along the dimensions of the weight; the outputs of each group have inputs of their own."""
    groups, k = read.groups, sums.shape[1]
    shape = [1] * len(read.part.sizes)
    shape[read.into] = len(sums) // groups
    if groups == 1:
        return sums.view(*shape, k)
    assert read.out is not None
    shape[read.out] = groups
    first = sums.view(groups, -1, k)
    laid = (first if read.out < read.into else first.transpose(0, 1)).reshape(*shape, k)
    return laid.repeat_interleave(read.part.sizes[read.out] // groups, read.out)
