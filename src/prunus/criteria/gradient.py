"""Criteria that look at gradients: how the loss changes when a weight goes, to first order."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunus.criteria.needs import needing
from prunus.stats import Stats


@needing("gradients")
def taylor(stats: Stats) -> Mapping[str, Tensor]:
    """(g w)², the squared first-order change of the loss when a weight goes, mean over batches.

    Source: Molchanov et al. 2019, equation 8, where the sum over the elements of a unit is taken as here by
    `reduce="sum"`.
    """
    return stats.mean(lambda g, w: (g * w).square())


@needing("gradients")
def taylor_abs(stats: Stats) -> Mapping[str, Tensor]:
    """|g w|, mean over batches.

    Source: Molchanov et al. 2017, equation 7, which takes it of feature maps; here it is taken of weights.
    """
    return stats.mean(lambda g, w: (g * w).abs())


@needing("gradients")
def snip(stats: Stats) -> Mapping[str, Tensor]:
    """|g w| with the gradient of the mean loss over all batches; meant for a network before its training.

    The model runs in eval mode. Source: Lee et al. 2019 (SNIP), arXiv:1810.02340, equation 6, without the division by
    their sum, which is the same for all.
    """
    return {name: (g * stats.weights[name]).abs() for name, g in stats.grads.items()}
