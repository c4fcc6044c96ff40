"""Act on the units of groups by their slices alone: the checks that use none of prunus.apply."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunus.graph.groups import Group, Groups
from prunus.plan import Plan


def slices(groups: Groups, group: Group, state: str) -> list[tuple[int, Tensor]]:
    """(dimension, slices that each unit owns along it) for one state tensor."""
    return [(m.dim, groups.index(group, m)) for m in group.members if m.state == state]


def permuted(model: nn.Module, groups: Groups, group: Group, order: Tensor) -> nn.Module:
    """A copy whose unit i is the unit `order[i]` of the model."""
    made = copy.deepcopy(model)
    for name, tensor in made.state_dict().items():
        for dim, rows in slices(groups, group, name):
            index = torch.arange(tensor.shape[dim])
            index[rows.flatten()] = rows[order].flatten()
            tensor.copy_(tensor.index_select(dim, index))
    return made


def can_be_permuted(groups: Groups, group: Group) -> bool:
    """Not where a unit shares slices with another: in the product of a leaf with itself."""
    every = [groups.index(group, member).flatten() for member in group.members]
    return all(rows.unique().numel() == rows.numel() for rows in every)


def zeroed(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy in which every floating slice of the removed units is zero."""
    made = copy.deepcopy(model)
    for name, tensor in made.state_dict().items():
        for key, keep in plan.keep.items():
            group = plan.groups[key]
            gone = ~keep[plan.groups.left(group)]
            for dim, rows in slices(plan.groups, group, name):
                if tensor.is_floating_point():
                    tensor.index_fill_(dim, rows[gone].flatten(), 0)
    return made


def bundles(groups: Groups) -> list[Sequence[str]]:
    """Names of groups that must keep equally many units."""
    tied = {name for tie in groups.ties for name in tie}
    whole = [tie for tie in groups.ties if all(name in groups for name in tie)]
    return [*whole, *((group.name,) for group in groups if group.name not in tied)]


def random_plan(groups: Groups, seed: int) -> Plan:
    """Any counts and any units; two at least where a statistic is inexact, for that of one unit is constant."""
    draw = torch.Generator().manual_seed(seed)
    keep: dict[str, Tensor] = {}
    for names in bundles(groups):
        left = [groups.left(groups[name]) for name in names]
        most = int(left[0].sum())
        enough = 1 if all(groups[name].exact for name in names) else min(2, most)
        least = max(enough, *(groups[name].least for name in names))
        count = int(torch.randint(least, most + 1, (), generator=draw))
        for name, mask in zip(names, left, strict=True):
            units = mask.nonzero().flatten()
            chosen = units[torch.randperm(most, generator=draw)[:count]]
            keep[name] = torch.zeros_like(mask).index_fill(0, chosen, True)
    return Plan(groups, keep)
