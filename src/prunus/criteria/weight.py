"""Criteria that look at weights alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.criteria.needs import needing
from prunus.graph.graph import Graph
from prunus.graph.node import Ref
from prunus.stats import Stats
from prunus.types import wide


def random(stats: Stats) -> Mapping[str, Tensor]:
    """Uniform in [0, 1): the baseline every other criterion must beat. Follows `stats.seed`."""
    draw = torch.Generator().manual_seed(stats.seed)
    return {name: torch.rand(w.shape, generator=draw) for name, w in stats.weights.items()}


def magnitude(stats: Stats) -> Mapping[str, Tensor]:
    """|w|; summed over a filter this is its L1 norm. Source: Li et al. 2017, section 3.1; Han et al. 2015."""
    return {name: w.abs() for name, w in stats.weights.items()}


def magnitude_l2(stats: Stats) -> Mapping[str, Tensor]:
    """w²; summed over a filter this is its squared L2 norm. Source: Han et al. 2015."""
    return {name: wide(w).square() for name, w in stats.weights.items()}


def lamp(stats: Stats) -> Mapping[str, Tensor]:
    """w² / Σ v² over all v of the same tensor with v² ≥ w²: in [0, 1], the largest of each tensor has 1.

    With `scope="global"` it sets the density of each layer too. Source: Lee et al. 2021, arXiv:2010.07611, equation 3;
    of equal weights each counts all of them, where the paper lets their order decide.
    """
    return {n: share_of_larger(w.double().square()) for n, w in stats.weights.items() if w.is_floating_point()}


def share_of_larger(values: Tensor) -> Tensor:
    """Each of some values, none negative, over the sum of all that are not smaller, itself included.

    >>> share_of_larger(torch.tensor([1.0, 4.0, 0.0, 5.0]))
    tensor([0.1000, 0.4444, 0.0000, 1.0000])
    """
    flat = values.flatten()
    ordered = flat.sort(descending=True).values
    last = torch.searchsorted(-ordered, -flat, right=True) - 1  # where the last equal one stands
    return torch.where(flat > 0, flat / ordered.cumsum(0)[last], 0.0).view(values.shape)


@needing("graph", "units")
def bn_scale(stats: Stats) -> Mapping[str, Tensor]:
    """|γ|, the scale of batch normalisation; of every such operation in the graph.

    Meant for networks that were trained with L1 on the scales. Source: Liu et al. 2017 (network slimming), section 3.
    """
    assert stats.graph is not None
    return {name: w.abs() for name, w in stats.weights.items() if name in scales_of(stats.graph)}


def scales_of(graph: Graph) -> set[str]:
    """The parameters that a batch norm of the graph, in either mode, multiplies with."""
    found: set[str] = set()
    for mode in graph.modes:
        states = {node.name: node.args[0] for node in mode.program.nodes if node.op == "state"}
        norms = (node.bound() for node in mode.program.nodes if "batch_norm" in node.plain)
        read = (norm.get("weight") for norm in norms)
        found |= {states[ref.name] for ref in read if isinstance(ref, Ref) and ref.name in states}
    return found


@needing("graph", "units")
def fpgm(stats: Stats) -> Mapping[str, Tensor]:
    """Σ_j ‖w_i - w_j‖₂ over the rows of each weight: how far a unit's row is from where most rows are.

    A unit that others can stand in for goes first, however large. Source: He et al. 2019 (FPGM), arXiv:1811.00250,
    equation 6; a group that several weights make adds up their distances.
    """
    shown = {name: stats.rows(name) for name, w in stats.weights.items() if w.ndim > 1}
    return {name: _distances(stats.weights[name], rows) for name, rows in shown.items() if rows is not None}


def _distances(w: Tensor, rows: int) -> Tensor:
    """Laid along the rows, so that the sum over a row is its distance."""
    flat = w.double().movedim(rows, 0).flatten(1)
    far = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").sum(1) / flat.shape[1]
    return far.view([-1 if d == rows else 1 for d in range(w.ndim)])
