"""What a model costs at any widths or densities, without running it: parameters, MACs, units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

from prunus.graph.axes import Atom, Axis
from prunus.graph.graph import Graph
from prunus.graph.groups import Groups
from prunus.graph.lay import multiplied_by
from prunus.graph.nest import input_tensors
from prunus.graph.width import Keep, counts, length

Kept = Mapping[Atom, int]
Cost = Callable[[Kept], float]
"""Leaf -> units that stay; the cost of the whole model at these widths."""


def cost_of(metric: str, groups: Groups) -> Cost:
    """The cost function of a budget metric: `units`, `params` or `macs`."""
    return {"units": _units(groups), "params": _params(groups.graph), "macs": _macs(groups.graph)}[metric]


def whole(metric: str, groups: Groups) -> float:
    """The cost of the model as it was."""
    if groups.laid:
        return _whole_within(metric, groups)
    return cost_of(metric, groups)({})


def predict(graph: Graph, keep: Keep) -> dict[str, tuple[float, float]]:
    """(before, after) of parameters and MACs; before is the traced model, on the first example."""
    kept = counts(keep)
    costs = {"params": _params(graph), "macs": _macs(graph)}
    return {name: (cost({}), cost(kept)) for name, cost in costs.items()}


def costs_of(groups: Groups, keep: Keep) -> dict[str, tuple[float, float]]:
    """(before, after) of what these units cost, slices of whole axes or units within tensors."""
    return predict_within(groups, keep) if groups.laid else predict(groups.graph, keep)


def _units(groups: Groups) -> Cost:
    return lambda kept: sum(kept.get(g.leaf, g.size) for g in groups)


def _params(graph: Graph) -> Cost:
    """Parameters of the whole model, tied ones once."""
    tensors = [axes for name, axes in graph.state_axes.items() if name in graph.parameters]
    return _sum_of_products(tensors)


def _macs(graph: Graph) -> Cost:
    """Multiply-accumulates of the first example in eval mode; bias and elementwise operations are not counted.

    What was traced may be another batch: leaves that follow an input have the size of the example.
    """
    notes = [graph.eval.inferred.notes.get(n.name) for n in graph.eval.program.nodes]
    cost = _sum_of_products([note.macs for note in notes if note is not None and note.macs is not None])
    own = own_sizes(graph)
    return lambda kept: cost({**kept, **own})


def own_sizes(graph: Graph) -> dict[Atom, int]:
    """Leaves that follow an input, with the size they have in the first example."""
    shapes = [t.shape for t in input_tensors(graph.examples[0]).values()]
    return {leaf: shapes[index][dim] for leaf, (index, dim) in graph.leaves.moving.items()}


@dataclass(frozen=True, eq=False)
class UnitCosts:
    """The cost of a model whose groups lie within tensors: `rest`, and so much for each unit of a group that stays.

    `rest` is what no group holds, and what an earlier plan left of the groups that `only` and `skip` leave out.
    """

    rest: float
    unit: Mapping[str, float]

    def of(self, kept: Mapping[str, int]) -> float:
        return self.rest + sum(self.unit[name] * count for name, count in kept.items())


def unit_costs(metric: str, groups: Groups) -> UnitCosts:
    """`units`, `params` (those that are not zero) or `macs` (those of weights that are not zero; needs the graph)."""
    unit = {"units": _one_each, "params": _elements_each, "macs": _macs_each}[metric](groups)
    gone = {g.name: g.size if g.name in groups else g.size - int(groups.left(g).sum()) for g in groups.every}
    rest = _whole_within(metric, groups) - sum(unit[name] * count for name, count in gone.items())
    return UnitCosts(rest, unit)


def _whole_within(metric: str, groups: Groups) -> float:
    whole = {"units": sum(g.size for g in groups), "params": groups.parameters}
    return whole[metric] if metric in whole else _macs(groups.graph)({})


def _one_each(groups: Groups) -> Mapping[str, float]:
    """Units are those of the groups at hand alone."""
    return {group.name: float(group.name in groups) for group in groups.every}


def _elements_each(groups: Groups) -> Mapping[str, float]:
    return {group.name: float(group.grid.elements) for group in groups.every if group.grid is not None}


def _macs_each(groups: Groups) -> Mapping[str, float]:
    """MACs in which one unit takes part: each element of a weight is multiplied equally often."""
    mode, graph = groups.graph.eval, groups.graph
    sizes = {group.name: group.size for group in groups.every}
    found = dict.fromkeys(sizes, 0.0)
    own = own_sizes(graph)
    for node in mode.program.nodes:
        note = mode.inferred.notes.get(node.name)
        if note is not None and note.macs is not None:
            for name in {*multiplied_by(node, mode.inferred.roots)} & found.keys():
                axes = note.macs if note.each is None else (*note.each, *graph.state_axes[name])
                found[name] += prod(length(axis, own) for axis in axes) / sizes[name]
    return found


def predict_within(groups: Groups, keep: Keep) -> dict[str, tuple[float, float]]:
    """The same for zeros within tensors: the parameters, and the MACs of weights, that are not zero."""
    every = replace(groups, items=groups.every)
    kept = {g.name: int(keep[g.leaf].sum()) if g.leaf in keep else g.size for g in every}
    metrics = ("params",) if groups.source is None else ("params", "macs")
    found: dict[str, tuple[float, float]] = {}
    for metric in metrics:
        costs = unit_costs(metric, every)
        found[metric] = costs.of({g.name: g.size for g in every}), costs.of(kept)
    return found


def _sum_of_products(terms: list[tuple[Axis, ...]]) -> Cost:
    """Only axes whose leaves can change are evaluated again at each call."""

    def cost(kept: Kept) -> float:
        known: dict[tuple[Atom, ...], int] = {}
        total = 0
        for axes in terms:
            product = 1
            for axis in axes:
                atoms = axis.atoms
                size = known.get(atoms)
                if size is None:
                    size = known[atoms] = length(axis, kept)
                product *= size
            total += product
        return total

    return cost
