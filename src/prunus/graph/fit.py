"""Rewrite the sizes of a captured program for the widths that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prunus.errors import PlanError
from prunus.graph.axes import Atom, Axes
from prunus.graph.graph import Graph, Mode
from prunus.graph.node import Meta, Node, Ref, find_refs, signature
from prunus.graph.program import Program
from prunus.graph.see import Note, Place
from prunus.graph.width import Keep, Size, counts, cut_tensor, length, share_of, size_of

_OPTIONS = ("dtype", "layout", "device", "pin_memory")
_DRAWN = 0.7
"""Stands for whatever is drawn at random: a number that neither factors nor terms can hide."""
_MADE = set("zeros ones full empty rand randn arange scalar_tensor new_zeros new_ones new_full".split())


def fit(graph: Graph, mode: Mode, keep: Keep) -> Program:
    """The program of `mode` with every size as it is once only `keep` stays; nodes nothing reads are left out.

    Where its path depends on values, the part before that: the rest holds for the traced inputs alone.
    """
    kept = counts(keep)
    nodes = [_fit_node(node, mode, kept, graph.leaves.moving) for node in mode.proven.nodes]
    nodes = _divide_by_whole(nodes, mode, kept) if mode.whole.nodes else nodes
    return replace(mode.proven, nodes=_used(nodes, mode.proven.outputs))


def fit_constants(graph: Graph, keep: Keep) -> dict[str, Tensor]:
    """Captured constants, cut to what stays."""
    return {name: cut_tensor(t, graph.constant_axes[name], keep) for name, t in graph.constants.items()}


def _fit_node(node: Node, mode: Mode, kept: Mapping[Atom, int], moving: Mapping[Atom, tuple[int, int]]) -> Node:
    note = mode.inferred.notes.get(node.name)
    if note is None or not (note.sizes or note.defaults or note.apart):
        return node
    for a, b, why in note.apart:
        if length(a, kept) == length(b, kept):
            raise PlanError(
                f"{node.module or 'the model'!r} would have two sizes of {length(a, kept)} that must differ: {why}. "
                "Keep more units of one of them, or leave one out with groups.skip(...)."
            )
    for place, axis in note.sizes.items():
        size = size_of(axis, kept, moving)
        node = with_argument(node, place, _said(size, place, note))
    for name, (axis, value) in note.defaults.items():
        if length(axis, kept) != axis.size:
            node = with_argument(node, Place(name), value)
    return node


def _divide_by_whole(nodes: list[Node], mode: Mode, kept: Mapping[Atom, int]) -> list[Node]:
    """What a mean reads is scaled by the share that is kept; in a root mean square, eps is divided by it instead."""
    eps = {fold.eps: fold for fold in mode.whole.folds}
    folded = {fold.mean for fold in mode.whole.folds}
    made: list[Node] = []
    for node in nodes:
        if node.name in eps:
            share = share_of(_over(mode, eps[node.name].mean), kept)
            number = node.bound()[eps[node.name].arg]
            node = with_argument(node, Place(eps[node.name].arg), number / share) if share != 1 else node
        elif node.name in mode.whole.nodes - folded and (share := share_of(_over(mode, node.name), kept)) != 1:
            made.append(Node(f"{node.name}_share", "aten.mul.Scalar", (node.args[0], share), module=node.module))
            node = replace(node, args=(Ref(made[-1].name), *node.args[1:]))
        made.append(node)
    return made


def _over(mode: Mode, mean: str) -> Axes:
    return tuple(read.over for read in mode.inferred.notes[mean].reads)


def _said(size: Size, place: Place, note: Note) -> Size:
    """What an argument says of a size: the size, minus it, or a number less."""
    if place in note.minus:
        size = -size if isinstance(size, int) else {"times": [-1, size]}
    less = note.less.get(place, 0)
    return size if not less else size - less if isinstance(size, int) else {"plus": [size, -less]}


def with_argument(node: Node, place: Place, value: Any) -> Node:
    """The node with one argument (or one entry of a list argument) replaced; the result's shape is left open."""
    names, _ = signature(node.op)
    position = names.index(place.arg)
    positional = position < len(node.args)
    old: Any = node.args[position] if positional else node.kwargs[place.arg] if place.index is not None else None
    if place.index is not None:
        value = [value if i == place.index else entry for i, entry in enumerate(old)]
    if positional:
        return replace(node, args=(*node.args[:position], value, *node.args[position + 1 :]))
    return replace(node, kwargs={**node.kwargs, place.arg: value})


def _used(nodes: list[Node], outputs: tuple[str, ...]) -> tuple[Node, ...]:
    """Leave out state, inputs and constants that nothing reads; operations all stay, for they may act in place."""
    read = {ref.name for node in nodes for ref in find_refs((node.args, node.kwargs))} | set(outputs)
    return tuple(n for n in nodes if n.op not in ("state", "constant") or n.name in read)


def lifted(program: Program, dtype: torch.dtype = torch.float64) -> Program:
    """The program with every cast to a floating type, and every floating tensor made, at `dtype` instead.

    Nodes that do neither stay the same objects.
    """
    return replace(program, nodes=tuple(_lift(node, dtype) for node in program.nodes))


def _lift(node: Node, dtype: torch.dtype) -> Node:
    def lift(value: Any) -> Any:
        return dtype if isinstance(value, torch.dtype) and value.is_floating_point else value

    if "." not in node.op:
        return node
    name = node.plain
    args, kwargs = tuple(map(lift, node.args)), {key: lift(value) for key, value in node.kwargs.items()}
    if name in _MADE and isinstance(node.out, Meta) and node.out.dtype.is_floating_point:
        kwargs["dtype"] = dtype
    same = all(a is b for a, b in zip([*args, *kwargs.values()], [*node.args, *node.kwargs.values()], strict=False))
    return node if same and len(kwargs) == len(node.kwargs) else replace(node, args=args, kwargs=kwargs)


def without_draws(program: Program) -> Program:
    """The program with constants in place of random draws, so that two widths can be compared."""
    return replace(program, nodes=tuple(_settle(node) for node in program.nodes))


def _settle(node: Node) -> Node:
    name = node.op.split(".")[1] if "." in node.op else ""
    bound = node.bound()
    if "dropout" in name:
        return replace(node, op="aten.alias.default", args=node.args[:1], kwargs={})
    for rate in {"dropout_p", "dropout"} & bound.keys():  # of attention, between recurrent layers
        return with_argument(node, Place(rate), 0.0)
    if name in ("bernoulli_", "normal_", "uniform_"):
        return replace(node, op="aten.fill_.Scalar", args=(node.args[0], _DRAWN), kwargs={})
    if name not in ("rand", "randn", "rand_like", "randn_like", "bernoulli", "normal"):
        return node
    options = {key: value for key, value in node.kwargs.items() if key in _OPTIONS}
    shaped = next(node.refs(), None)
    if shaped is None:
        return replace(node, op="aten.full.default", args=(bound["size"], _DRAWN), kwargs=options)
    return replace(node, op="aten.full_like.default", args=(shaped, _DRAWN), kwargs=options)
