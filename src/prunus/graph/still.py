"""Which units are dead in a model as it is: where they are read they are zero, or never change, whatever the input.

Known zeros of the weights are followed through the captured operations in eval mode. Of each value and each leaf on
its axes two facts are kept a unit: `zero` (its slice is zero) and `still` (its slice does not depend on the input).
What no rule below speaks of is neither: facts are never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from prunus.graph.axes import Atom
from prunus.graph.graph import Graph
from prunus.graph.interpret import operate
from prunus.graph.node import Node, Ref, find_refs
from prunus.graph.rules import pointwise
from prunus.graph.see import Place
from prunus.graph.width import positions


@dataclass(frozen=True, eq=False)
class Fact:
    """Of the units of one leaf; (size,) boolean each."""

    zero: Tensor
    still: Tensor

    def __and__(self, other: Fact) -> Fact:
        return Fact(self.zero & other.zero, self.still & other.still)


@dataclass(frozen=True, eq=False)
class Operand:
    """What an operation is given: the facts of the leaf at hand (None when it is not on this operand, or summed over),
    whether it is made of state alone, and whether it is zero as a whole."""

    arg: str
    fact: Fact | None
    constant: bool
    blank: bool


_MOVES = frozenset(
    "dropout view reshape flatten unflatten permute transpose t contiguous clone to _to_copy type_as float half double "
    "expand squeeze unsqueeze slice select narrow max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d mean sum amax chunk split "
    "split_with_sizes unbind upsample_nearest2d upsample_bilinear2d detach alias getitem".split()
)
"""Operations that make zeros of zeros."""


def dead_units(graph: Graph, state: Mapping[str, Tensor]) -> dict[Atom, Fact]:
    """Leaf -> `zero`: units whose removal changes nothing; `still`: units whose removal takes away constants only.

    `state` has the widths of the graph. Leaves that nothing reads are not named.
    """
    walk = _Walk(graph, state)
    for node in graph.eval.program.nodes:
        walk.visit(node)
    return walk.read


class _Walk:
    def __init__(self, graph: Graph, state: Mapping[str, Tensor]) -> None:
        self.graph, self.state, self.inferred = graph, state, graph.eval.inferred
        self.values: dict[str, Any] = {}
        """Values made of state alone, computed."""
        self.facts: dict[str, dict[Atom, Fact]] = {}
        """Facts of all other values."""
        self.read: dict[Atom, Fact] = {}

    def visit(self, node: Node) -> None:
        if node.name in self.inferred.roots:
            self.values[node.name] = self._computed(node)
            return
        leaves = {leaf for axes in self.inferred.axes[node.name] for axis in axes for leaf in axis.leaves()}
        self.facts[node.name] = {} if node.op == "input" else {leaf: self._fact(node, leaf) for leaf in leaves}
        if _plain(node.op) != _called(node.op):  # written in place: the old name stands for the new value
            self.facts.update({ref.name: self.facts[node.name] for ref in list(node.refs())[:1]})
        if node.name in self.inferred.live:
            self._note_reads(node)

    def _computed(self, node: Node) -> Any:
        if node.op in ("state", "constant"):
            return (self.state if node.op == "state" else self.graph.constants)[node.args[0]].detach()
        args = [self._resolved(a) for a in node.args]
        if node.op == "getitem":
            return args[0][args[1]]
        with torch.no_grad():
            return operate(node, args, {k: self._resolved(v) for k, v in node.kwargs.items()})

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, Ref):
            kept = self.values[value.name]
            return kept.clone() if isinstance(kept, Tensor) else kept
        return [self._resolved(v) for v in value] if isinstance(value, list) else value  # pyright: ignore[reportUnknownVariableType]

    def _fact(self, node: Node, leaf: Atom) -> Fact:
        operands = list(self._operands(node, leaf))
        unknown = Fact(_none(leaf), _none(leaf))
        rule = _RULES.get(_plain(node.op))
        return _carried(operands, unknown, _keeps_zero(node)) if rule is None else rule(node, operands, unknown)

    def _operands(self, node: Node, leaf: Atom) -> Iterator[Operand]:
        summed = self._summed(node, leaf)
        for place, ref in _places(node):
            constant = ref.name in self.values
            dims = [d for d in self._dims(ref, leaf) if (place, d) not in summed]
            fact = self._of(ref, leaf, dims) if dims else None
            yield Operand(place.arg, fact, constant, constant and not bool(self.values[ref.name].any()))

    def _summed(self, node: Node, leaf: Atom) -> set[tuple[Place, int]]:
        note = self.inferred.notes.get(node.name)
        return {(r.place, r.dim) for r in (note.reads if note else ()) if leaf in set(r.over.leaves())}

    def _dims(self, ref: Ref, leaf: Atom) -> list[int]:
        """The dimensions of a value that a leaf is on; of several results together, whichever has one."""
        every = self.inferred.axes[ref.name]
        return sorted({d for axes in every for d, axis in enumerate(axes) if leaf in set(axis.leaves())})

    def _of(self, ref: Ref, leaf: Atom, dims: list[int]) -> Fact:
        """The facts of one operand; of state they are computed from its values along `dims`."""
        if ref.name not in self.values:
            return self.facts[ref.name].get(leaf, Fact(_none(leaf), _none(leaf)))
        zero = ~_none(leaf)
        for dim in dims:
            value: Tensor = self.values[ref.name]
            blank = (value == 0).movedim(dim, 0).flatten(1).all(1) if value.ndim > 1 else value == 0
            zero &= blank.cpu()[positions(self.inferred.axes[ref.name][0][dim])[leaf]].all(1)
        return Fact(zero, ~_none(leaf))

    def _note_reads(self, node: Node) -> None:
        """Where a leaf is summed over: a product is zero where one factor is, and still where all are."""
        note = self.inferred.notes.get(node.name)
        refs = dict(_places(node))
        found: dict[Atom, list[Fact]] = {}
        for read in note.reads if note else ():
            for leaf in dict.fromkeys(read.over.leaves()):
                found.setdefault(leaf, []).append(self._of(refs[read.place], leaf, [read.dim]))
        for leaf, facts in found.items():
            zero = reduce(torch.logical_or, [f.zero for f in facts])
            fact = Fact(zero, zero | reduce(torch.logical_and, [f.still for f in facts]))
            self.read[leaf] = self.read[leaf] & fact if leaf in self.read else fact


def _places(node: Node) -> Iterator[tuple[Place, Ref]]:
    if node.op == "getitem":
        yield Place("self"), node.args[0]
    for arg, value in node.bound().items():
        if isinstance(value, Ref):
            yield Place(arg), value
        elif isinstance(value, list):
            items: list[Any] = value
            yield from ((Place(arg, i), v) for i, v in enumerate(items) if isinstance(v, Ref))
        else:
            yield from ((Place(arg), ref) for ref in find_refs(value))


def _called(op: str) -> str:
    return op.split(".")[1] if "." in op else op


def _plain(op: str) -> str:
    """`aten.relu_.default` -> `relu`."""
    return _called(op).removesuffix("_")


def _none(leaf: Atom) -> Tensor:
    return torch.zeros(leaf.size, dtype=torch.bool)


def _keeps_zero(node: Node) -> bool:
    """Is the result zero where the operands are? An operation on each element of one tensor is tried on a zero."""
    if _plain(node.op) in _MOVES:
        return True
    alone = pointwise.RULES.get(_plain(node.op)) is pointwise.pointwise
    if not alone or len(list(node.refs())) != 1:
        return False
    args, kwargs = ([torch.zeros(1) if isinstance(a, Ref) else a for a in node.args], dict(node.kwargs))
    return not any(isinstance(k, Ref) for k in kwargs.values()) and not bool(operate(node, args, kwargs).any())


Rule = Callable[[Node, list[Operand], Fact], Fact]
"""(node, its operands, the fact that nothing is known) -> the fact of the result."""


def _product(node: Node, operands: list[Operand], unknown: Fact) -> Fact:
    added = ("bias", "attn_mask", "self") if _plain(node.op) == "addmm" else ("bias", "attn_mask")
    factors = [o for o in operands if o.arg not in added]
    zero = reduce(torch.logical_or, [o.fact.zero for o in factors if o.fact], unknown.zero)
    still = zero | _all_still(factors, unknown)
    return _plus([Operand("", Fact(zero, still), False, False), *(o for o in operands if o.arg in added)], unknown)


def _sum(_: Node, operands: list[Operand], unknown: Fact) -> Fact:
    return _plus(operands, unknown)


def _plus(operands: list[Operand], unknown: Fact) -> Fact:
    zero = reduce(torch.logical_and, [o.fact.zero for o in operands if o.fact], ~unknown.zero)
    blank = all(o.fact or o.blank for o in operands)
    return Fact(zero if blank else unknown.zero, _all_still(operands, unknown))


def _all_still(operands: list[Operand], unknown: Fact) -> Tensor:
    held = [o.fact.still for o in operands if o.fact]
    if not held or not all(o.constant for o in operands if o.fact is None):
        return unknown.still
    return reduce(torch.logical_and, held)


def _norm(node: Node, operands: list[Operand], unknown: Fact) -> Fact:
    """(x - mean) / deviation * weight + bias; only a batch norm leaves a still unit still."""
    named = {o.arg: o.fact for o in operands if o.fact}
    zero, still = unknown.zero, unknown.still
    if _plain(node.op) == "batch_norm" and "input" in named:
        mean = named.get("running_mean")
        zero, still = (named["input"].zero & mean.zero if mean else zero), named["input"].still
    if "weight" in named:
        zero, still = zero | named["weight"].zero, still | named["weight"].zero
    return Fact(zero & named["bias"].zero if "bias" in named else zero, still)


def _attention(_: Node, operands: list[Operand], unknown: Fact) -> Fact:
    value = next((o.fact for o in operands if o.arg == "value" and o.fact), unknown)
    return Fact(value.zero, value.zero)


def _joined(_: Node, operands: list[Operand], unknown: Fact) -> Fact:
    """Operands without the leaf lie beside it."""
    return reduce(Fact.__and__, [o.fact for o in operands if o.fact] or [unknown])


def _carried(operands: list[Operand], unknown: Fact, keeps_zero: bool) -> Fact:
    """Any other operation acts on each unit alone, or its leaf would be fixed."""
    held = [o.fact.zero for o in operands if o.fact]
    zero = reduce(torch.logical_and, held) if held and keeps_zero else unknown.zero
    return Fact(zero, _all_still(operands, unknown))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d matmul mm bmm mul "
        "addmm".split(),
        _product,
    ),
    **dict.fromkeys(("add", "sub"), _sum),
    **dict.fromkeys(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"), _norm),
    **dict.fromkeys(("cat", "stack"), _joined),
    "scaled_dot_product_attention": _attention,
}
