"""A criterion that looks at how the layers follow each other, without data."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunus.criteria.needs import needing
from prunus.stats import Stats


@needing("graph")
def synflow(stats: Stats) -> Mapping[str, Tensor]:
    """|w · ∂R/∂|w||: R is the sum of the results of the network with absolute weights on inputs of ones.

    One round of what the paper repeats a hundred times: `plan_iteratively` does that. Then no layer loses all of its
    weights while any other could lose one. Running means of batch norms count as they are: use it before training,
    where they are zero. Source: Tanaka et al. 2020 (SynFlow), arXiv:2006.05467, equation 2 and algorithm 1.
    """
    return {name: (f * stats.weights[name]).abs() for name, f in stats.flow.items() if name in stats.weights}
