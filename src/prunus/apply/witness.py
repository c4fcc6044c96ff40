"""Does removing a group move the output at all? To first order, with redrawn weights: one backward pass for all."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors

from prunus.apply.check import Check
from prunus.apply.compare import error_between
from prunus.apply.redraw import redraw_inputs
from prunus.graph.groups import Group


def unwitnessed(check: Check) -> tuple[str, ...]:
    """Names of the cut groups whose removed units do not move the output of the model in eval mode."""
    groups = check.cut_groups
    seen = {group.name: _parameter(check, group) for group in groups}
    state: dict[str, Tensor] = {}

    def look(name: str) -> Tensor:
        if name not in state:
            state[name] = check.drawn(name).requires_grad_(name in seen.values())
        return state[name]

    with torch.enable_grad(), allow_mutation_on_saved_tensors():  # what runs in eval mode need not be trainable
        results = check.full(redraw_inputs(check.graph.inputs), look)
        total = torch.stack([_weighted(r) for r in results if r.is_floating_point()] or [torch.zeros([])]).sum()
        wanted = {name: state[name] for name in dict.fromkeys(seen.values()) if name in state}
        if not wanted or not total.requires_grad:
            return tuple(seen)
        try:
            grads: list[Tensor | None] = list(torch.autograd.grad(total, list(wanted.values()), allow_unused=True))
        except RuntimeError:  # an operation has no derivative
            return _unmoved(check, groups, seen)
    changes = {n: (t.detach() * g).abs() for (n, t), g in zip(wanted.items(), grads, strict=True) if g is not None}
    return tuple(g.name for g in groups if not _moves(check, g, seen[g.name], changes))


def _unmoved(check: Check, groups: list[Group], seen: dict[str, str]) -> tuple[str, ...]:
    """The same without derivatives: each group zeroed in turn."""
    inputs = redraw_inputs(check.graph.inputs)
    whole = check.full(inputs, check.drawn)

    def without(group: Group, name: str) -> Tensor:
        tensor = check.drawn(name)
        removed = ~check.plan.keep[group.name][check.plan.groups.left(group)]
        for member in group.members if name == seen[group.name] else ():
            if member.state == name:
                tensor.index_fill_(member.dim, check.plan.groups.index(group, member)[removed].flatten(), 0)
        return tensor

    with torch.no_grad():
        return tuple(g.name for g in groups if error_between(whole, check.full(inputs, partial(without, g))) == 0.0)


def _parameter(check: Check, group: Group) -> str:
    """The parameter a group is witnessed by: the first that makes its units."""
    return next(m.state for m in (*group.producers, *group.members) if m.state in check.graph.parameters)


def _weighted(result: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return (result * torch.randn(result.shape, generator=draw, dtype=result.dtype).to(result.device)).sum()


def _moves(check: Check, group: Group, name: str, changes: dict[str, Tensor]) -> bool:
    """Is there a removed unit with a slice of `name` whose change is not zero?"""
    if name not in changes:
        return False
    groups, change = check.plan.groups, changes[name]
    removed = ~check.plan.keep[group.name][groups.left(group)]
    for member in group.members:
        if member.state == name:
            rows = change.movedim(member.dim, 0).reshape(change.shape[member.dim], -1).sum(1)
            if bool((rows[groups.index(group, member)].sum(1)[removed] > 0).any()):
                return True
    return False
