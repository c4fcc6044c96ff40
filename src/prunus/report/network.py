"""The network as layers and what each reads: products by weights, and the places where paths join."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from prunus.graph.axes import Atom, Axes, Axis
from prunus.graph.graph import Graph, Mode
from prunus.graph.lay import multiplied_by
from prunus.graph.node import Node
from prunus.graph.width import length


@dataclass(frozen=True, eq=False)
class Layer:
    """`role` is `input`, `product` or `join`; `reads` are the positions of the layers that it takes values of.

    `units` is the axis of its outputs (channels, features), `weights` the parameters it multiplies by, `macs` the axes
    whose product is its multiply-accumulates.
    """

    name: str
    op: str
    role: str
    reads: tuple[int, ...]
    units: Axis | None
    weights: tuple[str, ...] = ()
    macs: tuple[Axis, ...] = ()


def layers_of(graph: Graph) -> list[Layer]:
    """The layers of the captured call in eval mode, in the order of the computation.

    What reads one layer only (norms, activations, views) is part of that layer.
    """
    mode, layers = graph.eval, list[Layer]()
    sources: dict[str, tuple[int, ...]] = {}
    for node in mode.program.nodes:
        read = tuple(dict.fromkeys(i for ref in node.refs() for i in sources.get(ref.name, ())))
        layer = _layer(graph, mode, node, read, layers) if node.name in mode.inferred.live else None
        if layer is None:
            sources[node.name] = read
        else:
            sources[node.name] = (len(layers),)
            layers.append(layer)
    return layers


def _layer(graph: Graph, mode: Mode, node: Node, read: tuple[int, ...], layers: list[Layer]) -> Layer | None:
    if node.op == "input":
        return Layer(f"input {'.'.join(map(str, node.args[0][1:]))}", "input", "input", (), None)
    note = mode.inferred.notes.get(node.name)
    macs = None if note is None else note.macs
    if not read or (macs is None and len(read) < 2):
        return None
    op = node.op.removeprefix("aten.").partition(".")[0].strip("_")
    axes = mode.inferred.of(node.name) if mode.inferred.axes[node.name] else ()
    if macs is None:
        return Layer(node.module, op, "join", read, _like(axes, [layers[i] for i in read]))
    weights = tuple(
        name
        for name in multiplied_by(node, mode.inferred.roots)
        if name in graph.parameters and name in graph.state_axes
    )
    spatial = max((len(graph.state[name].shape) for name in weights), default=2) - 2 if "conv" in op else 0
    units = axes[len(axes) - 1 - spatial] if len(axes) > spatial and weights else None
    return Layer(node.module, op, "product", read, units, weights, macs)


def _like(axes: Axes, read: list[Layer]) -> Axis | None:
    """The axis of a join that holds the units of what it joins."""
    leaves = {leaf for layer in read if layer.units is not None for leaf in layer.units.leaves()}
    holding = [axis for axis in axes if leaves.intersection(axis.leaves())]
    return holding[0] if holding else None


def macs_of(layer: Layer, sizes: Mapping[Atom, int]) -> int:
    """Multiply-accumulates of a product where the leaves have these sizes."""
    return prod(length(axis, sizes) for axis in layer.macs) if layer.role == "product" else 0
