"""`bn_scale`: the sum of absolute scales of batch norms, one or more a unit: network slimming."""

from __future__ import annotations

from prunus import schedules
from prunus.criteria.weight import scales_of
from prunus.errors import GroupError
from prunus.graph.groups import Groups
from prunus.regularize.l1 import Absolute
from prunus.regularize.push import Push
from prunus.regularize.units import units_of
from prunus.schedules import Schedule


def bn_scale(groups: Groups, *, strength: float = 1e-4, steps: int = 1, schedule: Schedule = schedules.linear) -> Push:
    """strength · Σ |γ|, over the scales of every batch norm that the units of `groups` go through.

    The gradient added is strength · sign(γ), zero at zero. Batch norms are found as operations of the traced graph, so
    that functional calls count; a group without one feels nothing.

    >>> import torch, prunus
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 1)
    ... )
    >>> groups = prunus.group(prunus.trace(net, torch.randn(3, 2)))
    >>> bn_scale(groups, strength=0.5).penalty(net).item()  # γ starts at one
    2.0

    Raises `GroupError` when no unit goes through a batch norm with a scale, or units lie within tensors.

    Source: Liu et al. 2017 (network slimming), arXiv:1708.06519, equation 1 with g(s) = |s|.
    """
    if groups.laid:
        units_of(groups, "bn_scale")  # which refuses them
    units = units_of(groups, "bn_scale", scales_of(groups.graph))
    if not units.places:
        raise GroupError(
            "bn_scale pushes the scales of batch norms, and no unit of these groups goes through one that has scales. "
            "Use prunus.regularize.group_lasso, which needs none."
        )
    return Push(groups, Absolute(units), who="bn_scale", strength=strength, steps=steps, schedule=schedule)
