"""Criteria that look at activations, as the weights behind them read them.

What a unit gives is what its consumers read, behind its activation, norm and pooling. Values of one unit lie along the
inputs of those weights; a unit that several weights or positions read has the mean of what they read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.criteria.needs import needing
from prunus.stats import Stats
from prunus.types import wide


@needing("activations", "units")
def activation(stats: Stats) -> Mapping[str, Tensor]:
    """Mean |activation| of a unit over samples and positions. Source: Molchanov et al. 2017, section 2.2 (mean)."""
    return {name: seen.size / seen.count * seen.spread for name, seen in stats.inputs.items()}


@needing("activations", "units")
def apoz(stats: Stats) -> Mapping[str, Tensor]:
    """1 - APoZ: the share of a unit's activations that are not zero. Source: Hu et al. 2016, equation 1."""
    return {name: seen.nonzero / seen.count * seen.spread for name, seen in stats.inputs.items()}


@needing("activations", "units")
def hrank(stats: Stats) -> Mapping[str, Tensor]:
    """Mean rank of a unit's feature maps, over samples; for units that convolutions over images read.

    Source: Lin et al. 2020 (HRank), arXiv:2002.10179, equation 4.
    """
    found = stats.over_inputs(_ranks)
    return {name: total / count * spread for name, ((total, count), spread) in found.items()}


def _ranks(x: Tensor) -> Tensor | None:
    """The sum of the ranks of each input's maps, and how many there are; None where there are no maps."""
    if x.ndim != 4 or 1 in x.shape[2:]:
        return None
    ranks = torch.linalg.matrix_rank(wide(x))
    return torch.stack([ranks.sum(0).double(), torch.full((x.shape[1],), float(len(x)), dtype=torch.float64)], 1)


@needing("activations")
def wanda(stats: Stats) -> Mapping[str, Tensor]:
    """|w| · ‖x_j‖₂ over samples and positions; meant for `scope="row"`.

    Source: Sun et al. 2023 (Wanda), arXiv:2306.11695, equation 1.
    """
    return {name: stats.weights[name].abs() * norm for name, norm in stats.input_norm.items()}


@needing("activations")
def ria(stats: Stats) -> Mapping[str, Tensor]:
    """(|w| / Σ of its column + |w| / Σ of its row) · ‖x_j‖₂^½: no input and no output loses all.

    A row is what one output is a sum of, with the kernel of a convolution; a column what one input reaches. Source:
    Zhang et al. 2024 (RIA), equation 4, with its a = ½.
    """
    return {name: _relative(stats, name) * norm.sqrt() for name, norm in stats.input_norm.items()}


def _relative(stats: Stats, name: str) -> Tensor:
    w, rows = wide(stats.weights[name].abs()), stats.rows(name) or 0
    of_row = w.sum([d for d in range(w.ndim) if d != rows], keepdim=True)
    of_column = w.sum(rows, keepdim=True)
    tiny = torch.finfo(w.dtype).tiny
    return w / of_column.clamp(min=tiny) + w / of_row.clamp(min=tiny)


@needing("activations", "units")
def flap(stats: Stats) -> Mapping[str, Tensor]:
    """Var(x_j) · ‖W_:j‖²: what of a unit a constant in the next bias cannot replace.

    The cut itself leaves biases as they are. Source: An et al. 2024 (FLAP), arXiv:2312.11983, equation 5, without its
    correction of biases.
    """
    return {name: _fluctuation(stats, name) for name in stats.inputs}


def _fluctuation(stats: Stats, name: str) -> Tensor:
    seen, w = stats.inputs[name], stats.weights[name]
    energy = seen.variance * w.double().square()
    over = [d for d, n in enumerate(seen.variance.shape) if n == 1]
    total = energy.sum(over, keepdim=True) if over else energy
    return total * (total.numel() / energy.numel())
