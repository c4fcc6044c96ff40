"""Gram matrices of what weights read, some at a time, so that no more than a gibibyte of them is held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from torch import Tensor

from prunus.errors import CriterionError
from prunus.stats.forward import Watch
from prunus.stats.products import Read

ROOM = 2**27
"""Entries of float64: one gibibyte."""


class Grams(Mapping[str, Tensor]):
    """Parameter -> X Xᵀ of what it reads; computed on demand together with the next ones for which there is room.

    Without transposed convolutions, and weights whose parts read different values (experts, projections of two
    sequences in one weight).
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], watch: Watch) -> None:
        self._watch = watch
        self._sizes = _sizes(shapes, watch)
        self._held: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._sizes:
            raise KeyError(name)
        if name not in self._held:
            self._held = {}  # makes room first
            self._held = _grams(self._next(name), self._watch)
        if name not in self._held:
            raise CriterionError(
                f"{name!r} took part in no product on a second pass over the data; can they be reread?"
            )
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def _next(self, name: str) -> dict[str, int]:
        order = list(self._sizes)
        chosen, room = {name: self._sizes[name]}, ROOM - self._sizes[name]
        for other in order[order.index(name) + 1 :]:
            room -= self._sizes[other]
            if room < 0:
                break
            chosen[other] = self._sizes[other]
        return chosen


def _grams(wanted: Mapping[str, int], watch: Watch) -> dict[str, Tensor]:
    """name -> X Xᵀ of what a weight reads, (groups, size, size) in float64."""
    found: dict[str, Tensor] = {}

    def see(read: Read) -> None:
        if read.part.name in wanted:
            x = read.columns().double()
            product = x.transpose(1, 2) @ x
            found[read.part.name] = product + found[read.part.name] if read.part.name in found else product

    watch(see)
    return found


def _sizes(shapes: Mapping[str, tuple[int, ...]], watch: Watch) -> dict[str, int]:
    """Entries of each matrix, in the order in which the weights are used."""
    found: dict[str, int] = {}
    others: set[str] = set()

    def see(read: Read) -> None:
        if read.transposed or read.part.sizes != shapes.get(read.part.name):
            others.add(read.part.name)
        columns = read.x.shape[1] // read.groups * prod(read.kernel.size if read.kernel else ())
        if read.part.name in shapes:
            found[read.part.name] = read.groups * columns**2

    watch(see)
    return {name: size for name, size in found.items() if name not in others}
