"""What a unit is: the shapes within tensors that go together."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TypeAlias

from prunus.errors import GroupError


@dataclass(frozen=True)
class Channel:
    """Whole slices along the axes of a model: channels, neurons, heads, head dimensions, groups of convolutions.

    Kept counts are multiples of `round_to`, or the whole size. Where a unit is several slices wide (a head of 64
    dimensions), the multiple is that of the slices.
    """

    round_to: int = 1

    def __post_init__(self) -> None:
        _positive(self, self.round_to, "8 or 16 suit most CPUs")

    def step(self, width: int) -> int:
        """The multiple that a count of units must be, for units `width` slices wide.

        >>> Channel(round_to=8).step(1), Channel(round_to=8).step(64), Channel(round_to=8).step(4)
        (8, 1, 2)
        """
        return self.round_to // gcd(self.round_to, width)


@dataclass(frozen=True)
class Element:
    """Single weights: unstructured sparsity."""


@dataclass(frozen=True)
class NofM:
    """The best `n` of every `m` consecutive inputs stay, for each output and kernel position: `NofM(2, 4)` is 2:4.

    The density is n / m by itself; there is no budget. Source: Mishra et al. 2021, arXiv:2104.08378, section 3.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        _positive(self, self.n, "2:4 is NofM(2, 4)")
        if not self.n < self.m:
            raise GroupError(f"{self} keeps {self.n} of every {self.m}; expected n < m, such as NofM(2, 4).")


@dataclass(frozen=True)
class Block:
    """Blocks of `rows` outputs by `cols` inputs at one kernel position: `Block(4, 1)`, `Block(1, 4)`."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        _positive(self, min(self.rows, self.cols), "4x1 is Block(4, 1)")


Laid: TypeAlias = "Element | NofM | Block"
"""Patterns within tensors: they need no trace, and make zeros but nothing smaller."""
Pattern: TypeAlias = "Channel | Laid"


def block_of(pattern: Laid) -> tuple[int, int]:
    """(outputs, inputs) of one unit."""
    return (pattern.rows, pattern.cols) if isinstance(pattern, Block) else (1, 1)


def multiples_of(pattern: Laid) -> tuple[int, int]:
    """What the (outputs, inputs) of a weight must be multiples of."""
    return (1, pattern.m) if isinstance(pattern, NofM) else block_of(pattern)


def _positive(pattern: object, number: int, hint: str) -> None:
    if number < 1:
        raise GroupError(f"{pattern} needs positive integers; {hint}.")
