"""What happened to each layer, as plain values: units, parameters and MACs before and after, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from prunus.cost import own_sizes
from prunus.graph.axes import Atom
from prunus.graph.graph import Graph
from prunus.graph.groups import Groups
from prunus.graph.width import Keep, counts, length
from prunus.plan import Plan
from prunus.report.network import Layer, layers_of, macs_of


@dataclass(frozen=True, eq=False)
class Cut:
    """Sizes before and after a plan, and why; without a plan both are the same."""

    groups: Groups | None
    graph: Graph
    own: Mapping[Atom, int]
    kept: Mapping[Atom, int]
    how: str
    planned: frozenset[str]

    def units(self, layer: Layer) -> list[int] | None:
        if layer.units is None:
            return None
        return [length(layer.units, self.own), length(layer.units, {**self.kept, **self.own})]

    def elements(self, state: str) -> list[int]:
        """Of a tensor: how many, and how many are left (of single weights: are not zero)."""
        axes = self.graph.state_axes[state]
        whole = prod(axis.size for axis in axes)
        group = self.of_weight(state)
        if group is not None and group.grid is not None:
            return [whole, self.kept.get(group.leaf, group.size) * group.grid.elements]
        return [whole, prod(length(axis, self.kept) for axis in axes)]

    def of_weight(self, state: str) -> Any:
        laid = self.groups is not None and self.groups.laid
        every = self.groups.every if self.groups is not None and laid else ()
        return next((group for group in every if group.name == state), None)

    def density(self, layer: Layer) -> float:
        """The share of the weights of a layer that is not zero, where zeros are what was made."""
        laid = self.groups is not None and self.groups.laid
        sizes = [self.elements(name) for name in layer.weights if self.of_weight(name) is not None] if laid else []
        return sum(s[1] for s in sizes) / sum(s[0] for s in sizes) if sizes else 1.0


def cut_of(graph: Graph, plan: Plan | None, groups: Groups | None = None) -> Cut:
    """How a plan cuts a graph; with groups alone, what could be cut."""
    left: Keep = {} if plan is None else plan.left
    settings = {} if plan is None else plan.provenance
    criterion = str(settings.get("criterion", settings.get("from", ""))).removeprefix("prunus.criteria.")
    how = ", ".join(part for part in (criterion, str(settings.get("scope", ""))) if part)
    if plan is not None:
        groups = plan.groups
    planned = frozenset(plan.keep) if plan is not None else frozenset(g.name for g in groups or ())
    return Cut(groups, graph, own_sizes(graph), counts(left), how, planned)


def network(graph: Graph, cut: Cut) -> list[dict[str, Any]]:
    """The layers for drawing: what each reads, its units before and after, and the share of its weights left."""
    return [
        {
            "name": layer.name or "(top)",
            "op": layer.op,
            "role": layer.role,
            "reads": list(layer.reads),
            "units": cut.units(layer),
            "density": cut.density(layer),
        }
        for layer in layers_of(graph)
    ]


def layer_rows(graph: Graph, cut: Cut) -> list[dict[str, Any]]:
    """One row a weight that is multiplied by, and a last one for all other parameters. MACs are of the example."""
    rows: dict[str, dict[str, Any]] = {}
    counted: set[str] = set()
    for layer in layers_of(graph):
        if layer.role == "product" and layer.weights:
            weight = max(layer.weights, key=lambda name: len(graph.state[name].shape))
            row = rows[weight] if weight in rows else _row(graph, cut, layer, weight, counted)
            rows[weight] = row
            before, after = macs_of(layer, cut.own), macs_of(layer, {**cut.kept, **cut.own})
            row["macs"] = [row["macs"][0] + before, row["macs"][1] + round(after * cut.density(layer))]
    rest = sorted(_parameters(graph) - counted)
    return [*rows.values(), *([_rest(cut, rest)] if rest else [])]


def _row(graph: Graph, cut: Cut, layer: Layer, weight: str, counted: set[str]) -> dict[str, Any]:
    module = weight.rpartition(".")[0]
    beside = {name for name in _parameters(graph) if name.rpartition(".")[0] == module}
    own = sorted(({*layer.weights} | beside) - counted)
    counted.update(own)
    group = cut.of_weight(weight)
    status, why = _why_laid(cut, weight) if cut.groups is not None and cut.groups.laid else _why(cut, layer)
    return {
        "name": module or weight,
        "kind": layer.op,
        "of": "channels" if group is None else ("weights" if group.kind == "element" else "blocks"),
        "units": cut.units(layer) if group is None else [group.size, cut.kept.get(group.leaf, group.size)],
        "params": _summed([cut.elements(name) for name in own]),
        "macs": [0, 0],
        "status": status,
        "why": why,
    }


def _parameters(graph: Graph) -> set[str]:
    """Tied ones once."""
    return {name for name in graph.state_axes if name in graph.parameters}


def _rest(cut: Cut, names: list[str]) -> dict[str, Any]:
    return {
        "name": f"all else ({len(names)} tensors)",
        "kind": "norms, tables",
        "of": "",
        "units": None,
        "params": _summed([cut.elements(name) for name in names]),
        "macs": [0, 0],
        "status": "",
        "why": "follows the layers it belongs to",
    }


def _summed(pairs: list[list[int]]) -> list[int]:
    return [sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)]


def _why(cut: Cut, layer: Layer) -> tuple[str, str]:
    """(status, reason) of the channels a layer makes."""
    leaves = [leaf for leaf in dict.fromkeys(layer.units.leaves() if layer.units is not None else ()) if leaf.size > 1]
    groups = {group.leaf: group for group in (cut.groups.every if cut.groups is not None else ())}
    found: dict[str, str] = {}
    for leaf in leaves:
        group = groups.get(leaf)
        if leaf in cut.graph.leaves.fixed:
            found.setdefault("fixed", cut.graph.leaves.fixed[leaf])
        elif group is not None and group.name not in cut.planned and leaf not in cut.kept:
            found.setdefault("skipped", "left out by only or skip" if group.exact else f"inexact: {group.why}")
        elif cut.kept.get(leaf, leaf.size) < leaf.size:
            found.setdefault("pruned", cut.how or "by the plan")
        elif group is not None:
            found.setdefault("whole", f"nothing below the cut ({cut.how})" if cut.how else "can be pruned")
    status = next((s for s in ("pruned", "fixed", "skipped", "whole") if s in found), "fixed")
    return status, found.get(status, "one unit")


def _why_laid(cut: Cut, weight: str) -> tuple[str, str]:
    group = cut.of_weight(weight)
    if group is None:
        return "skipped", "left dense: outside the pattern, or left out by only or skip"
    kept = cut.kept.get(group.leaf, group.size)
    if kept < group.size:
        return "pruned", cut.how or "by the plan"
    return ("whole", "nothing below the cut") if weight in cut.planned else ("skipped", "left out by only or skip")
