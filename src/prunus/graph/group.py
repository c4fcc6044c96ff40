"""`group`: find what must be removed together, on the axes of a traced model, or within its tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from prunus.errors import GroupError
from prunus.graph.axes import Atom
from prunus.graph.graph import Graph
from prunus.graph.groups import Group, Groups, Member
from prunus.graph.kind import kinds_of, named, ties_of
from prunus.graph.lay import lay
from prunus.patterns import Channel, Pattern


def group(
    model: Graph | nn.Module,
    *,
    pattern: Pattern | None = None,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
) -> Groups:
    """Find the groups of a model. `Element`, `NofM` and `Block` need no trace; `Channel`, the default, does.

    `only` and `skip` choose groups, or weights, by glob. Elements, N:M and blocks are laid over every weight of a
    product with two dimensions or more: not over lookup tables, biases and norms. Take a traced model for an exact
    reading of what is multiplied; without a trace the kinds of the modules tell, and matrices of other modules are
    printed as left dense, unless `only` names them.

    Raises `GroupError` when channels are asked of a model that was not traced, when every axis is fixed, or when a
    pattern does not divide a weight (naming it).

    >>> import torch
    >>> from prunus.graph.trace import trace
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> print(group(trace(net, torch.randn(2, 4))))
    1 groups, 8 units
      0      8 channel      3 tensors
    >>> from prunus.patterns import NofM
    >>> print(group(net, pattern=NofM(2, 4), skip="2"))
    1 groups, 32 units
      0.weight     32 element       of (8, 4)
      2.weight  left dense: 24 weights
    """
    only, skip = ([globs] if isinstance(globs, str) else globs for globs in (only, skip))
    if pattern is not None and not isinstance(pattern, Channel):
        return lay(model, pattern, only, skip)
    pattern = pattern or Channel()
    if not isinstance(model, Graph):
        raise GroupError(
            f"Channels of a {type(model).__name__} cannot be found without its graph: "
            "pass prunus.trace(model, inputs) instead of the model."
        )
    found = _find(model)
    if not found:
        reasons = "\n".join(f"  {where}: {why}" for where, why in list(model.fixed.items())[:12])
        raise GroupError(f"Nothing in this {model.model_class} can be pruned; every axis is fixed:\n{reasons}")
    names = {g.leaf: g.name for g in found}
    ties = tuple(tuple(names[leaf] for leaf in tie) for tie in ties_of(model, names.keys()))
    groups = Groups(model, pattern, tuple(found), ties, tuple(found))
    return (groups.only(*only) if only else groups).skip(*skip)


def _find(graph: Graph) -> list[Group]:
    members = _members(graph)
    kinds = kinds_of(graph, members.keys())
    names = named({leaf: [m.state for m in ms if not m.consumer] for leaf, ms in members.items()}, kinds)
    return [
        Group(
            name=names[leaf],
            kind=kinds[leaf],
            size=leaf.size,
            members=tuple(owned),
            exact=leaf not in graph.leaves.inexact,
            why=graph.leaves.inexact.get(leaf, ""),
            width=_width(graph, leaf, owned),
            leaf=leaf,
            least=graph.leaves.least.get(leaf, 1),
        )
        for leaf, owned in members.items()
    ]


def _members(graph: Graph) -> dict[Atom, list[Member]]:
    """Every free leaf that a parameter has, with the state dimensions it occurs on, in the order of the state."""
    found: dict[Atom, list[Member]] = {}
    for name, axes in graph.state_axes.items():
        for dim, axis in enumerate(axes):
            for leaf in dict.fromkeys(axis.leaves()):
                if leaf not in graph.leaves.fixed and leaf.size > 1:
                    square = dim == 0 and len(axes) > 1 and leaf in axes[1].atoms  # makes what it reads
                    consumer = (name, leaf) in graph.leaves.consumed and not square
                    found.setdefault(leaf, []).append(Member(name, dim, consumer))
    return {leaf: ms for leaf, ms in found.items() if any(m.state in graph.parameters for m in ms)}


def _width(graph: Graph, leaf: Atom, members: Sequence[Member]) -> int:
    """How many slices a unit is wide where it is made; the widest place counts (a head: its head dimension)."""
    widths = [graph.owned(m.state, m.dim)[leaf].shape[1] for m in members if not m.consumer]
    return max(widths, default=1)
