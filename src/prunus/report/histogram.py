"""How the weights are spread before and after, zeros apart: two histograms over the same bins for each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    pairs = {name: (_values(old[name]), _values(new[name])) for name in old if name in new}
    if len(pairs) > 1:
        pairs = {"": _all(pairs), **pairs}
    return {name: _histogram(before, after) for name, (before, after) in pairs.items()}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    found = dict(unwrap(model).named_parameters())
    return {name: p.detach() for name, p in found.items() if p.ndim > 1 and not p.is_meta and p.is_floating_point()}


def _values(weight: Tensor) -> Tensor:
    return weight.flatten().float().cpu()


def _all(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([a for a, _ in pairs.values()]), torch.cat([b for _, b in pairs.values()])


def _histogram(before: Tensor, after: Tensor) -> Histogram:
    some = before[before.isfinite() & (before != 0)]
    limit = WITHIN * float(some.square().mean().sqrt()) if some.numel() else 1.0
    limit = min(limit, float(some.abs().max())) if some.numel() else limit
    return Histogram(limit, _spread(before, limit), _spread(after, limit))


def _spread(values: Tensor, limit: float) -> Spread:
    some = values[values.isfinite() & (values != 0)]
    inside = some[some.abs() <= limit]
    counts = torch.histc(inside, BINS, -limit, limit).long().tolist()
    return Spread(values.numel(), int((values == 0).sum()), some.numel() - inside.numel(), tuple(counts))
