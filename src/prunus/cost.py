"""What a model costs at any widths, from its graph alone: parameters, MACs, units."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunus.graph.axes import Atom, Axis
from prunus.graph.graph import Graph
from prunus.graph.groups import Groups
from prunus.graph.nest import input_tensors
from prunus.graph.width import Keep, counts, length

Kept = Mapping[Atom, int]
Cost = Callable[[Kept], float]
"""Leaf -> units that stay; the cost of the whole model at these widths."""


def cost_of(metric: str, groups: Groups) -> Cost:
    """The cost function of a budget metric: `units`, `params` or `macs`."""
    return {"units": _units(groups), "params": _params(groups.graph), "macs": _macs(groups.graph)}[metric]


def predict(graph: Graph, keep: Keep) -> dict[str, tuple[float, float]]:
    """(before, after) of parameters and MACs; before is the traced model, on the first example."""
    kept = counts(keep)
    costs = {"params": _params(graph), "macs": _macs(graph)}
    return {name: (cost({}), cost(kept)) for name, cost in costs.items()}


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
    shapes = [t.shape for t in input_tensors(graph.examples[0]).values()]
    own = {leaf: shapes[index][dim] for leaf, (index, dim) in graph.leaves.moving.items()}
    return lambda kept: cost({**kept, **own})


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
