"""How the weights are spread before and after, zeros apart: two histograms over the same bins for each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from prunus.graph.private import unwrap

BINS = 40
WITHIN = 4.0
"""The bins reach this many times the root mean square of the weights; what lies beyond is counted apart."""


@dataclass(frozen=True)
class Spread:
    """The weights of one tensor: `counts` of those that are not zero in equal bins over [-limit, limit], and the rest.

    `total` = sum(counts) + beyond + zeros, where all are finite.
    """

    total: int
    zeros: int
    beyond: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Histogram:
    """A weight before and after, over the same bins: [-limit, limit] in `BINS` equal parts."""

    limit: float
    before: Spread
    after: Spread


def histograms(model: nn.Module, small: nn.Module) -> dict[str, Histogram]:
    """State name -> histogram, for each parameter of two dimensions or more that both models have.

    The empty name stands for all of them together. Weights on the meta device have no values and are left out.

    >>> found = histograms(nn.Linear(4, 3), nn.Linear(4, 2))
    >>> found["weight"].before.total, found["weight"].after.total
    (12, 8)
    """
    old, new = _weights(model), _weights(small)
    pairs = {name: (old[name], new[name]) for name in old if name in new}
    found = {name: _histogram([pair]) for name, pair in pairs.items()}
    return {"": _histogram(list(pairs.values())), **found} if len(pairs) > 1 else found


def _weights(model: nn.Module) -> dict[str, Tensor]:
    found = dict(unwrap(model).named_parameters())
    return {name: p.detach() for name, p in found.items() if p.ndim > 1 and not p.is_meta and p.is_floating_point()}


def _values(weight: Tensor) -> Tensor:
    return weight.flatten().float().cpu()


def _histogram(pairs: Sequence[tuple[Tensor, Tensor]]) -> Histogram:
    """Of one weight, or of several together; one at a time is held as floats."""
    limit = _limit([before for before, _ in pairs])
    before, after = (reduce(_added, (_spread(_values(pair[i]), limit) for pair in pairs)) for i in (0, 1))
    return Histogram(limit, before, after)


def _limit(weights: Sequence[Tensor]) -> float:
    """`WITHIN` times the root mean square of what is not zero, or the largest where that is less."""
    squares, count, largest = 0.0, 0, 0.0
    for weight in weights:
        some = _some(_values(weight))
        squares, count = squares + float(some.double().square().sum()), count + some.numel()
        largest = max(largest, float(some.abs().max()) if some.numel() else 0.0)
    return min(WITHIN * (squares / count) ** 0.5, largest) if count else 1.0


def _some(values: Tensor) -> Tensor:
    return values[values.isfinite() & (values != 0)]


def _spread(values: Tensor, limit: float) -> Spread:
    some = _some(values)
    inside = some[some.abs() <= limit]
    counts = torch.histc(inside, BINS, -limit, limit).long().tolist()
    return Spread(values.numel(), int((values == 0).sum()), some.numel() - inside.numel(), tuple(counts))


def _added(a: Spread, b: Spread) -> Spread:
    counts = tuple(x + y for x, y in zip(a.counts, b.counts, strict=True))
    return Spread(a.total + b.total, a.zeros + b.zeros, a.beyond + b.beyond, counts)
