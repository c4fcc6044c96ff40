"""Which elements matter: each criterion gives every state tensor a saliency; larger = keep.

A criterion is any callable `Stats -> {state name: saliency}`, broadcastable to the parameter. To write one, take what
it needs from `stats`; a criterion pays for what it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from prunus.stats import Stats

Criterion: TypeAlias = Callable[[Stats], Mapping[str, Tensor]]


def random(stats: Stats) -> Mapping[str, Tensor]:
    """Uniform in [0, 1): the baseline every other criterion must beat. Follows `stats.seed`."""
    draw = torch.Generator().manual_seed(stats.seed)
    return {name: torch.rand(w.shape, generator=draw) for name, w in stats.weights.items()}


def magnitude(stats: Stats) -> Mapping[str, Tensor]:
    """|w|; summed over a filter this is its L1 norm. Source: Li et al. 2017, section 3.1; Han et al. 2015."""
    return {name: w.abs() for name, w in stats.weights.items()}


def magnitude_l2(stats: Stats) -> Mapping[str, Tensor]:
    """w²; summed over a filter this is its squared L2 norm. Source: Han et al. 2015."""
    return {name: w.square() for name, w in stats.weights.items()}


def taylor(stats: Stats) -> Mapping[str, Tensor]:
    """(g w)², the squared first-order change of the loss when a weight goes, mean over batches.

    Source: Molchanov et al. 2019, equation 8, where the sum over the elements of a unit is taken as here by
    `reduce="sum"`.
    """
    return stats.mean(lambda g, w: (g * w).square())
