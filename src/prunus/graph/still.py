"""Which units are dead in a model as it is: where they are read they are zero, or never change, whatever the input.

Known zeros of the weights are followed through the captured operations in eval mode. Of each value and each leaf on
its axes two facts are kept a unit: `zero` (its slice is zero) and `still` (its slice does not depend on the input); a
slice is all that has the unit's index on any dimension. What no rule below speaks of is neither: facts are never
guessed. All else is taken to be finite, so that zero times it is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from prunus.graph.axes import Atom
from prunus.graph.capture import Program
from prunus.graph.graph import Graph
from prunus.graph.interpret import operate
from prunus.graph.node import Meta, Node, Ref, find_refs, overload
from prunus.graph.rules import pointwise
from prunus.graph.see import Place, Read
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
    "dropout view reshape flatten unflatten permute transpose t movedim contiguous clone to _to_copy type_as float "
    "half double expand squeeze unsqueeze slice select narrow max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d "
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d mean sum amax chunk "
    "split split_with_sizes unbind repeat repeat_interleave flip roll pixel_shuffle glu upsample_nearest2d "
    "upsample_bilinear2d detach alias getitem".split()
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
        self.written = _written(graph.eval.program)
        self.values: dict[str, Any] = {}
        """Values made of state alone, computed."""
        self.facts: dict[str, dict[Atom, Fact]] = {}
        """Facts of all other values."""
        self.read: dict[Atom, Fact] = {}

    def visit(self, node: Node) -> None:
        refs = [ref.name for ref in node.refs()]
        if node.op != "input" and node.name not in self.written and all(name in self.values for name in refs):
            self.values[node.name] = self._computed(node)
            return
        leaves = {leaf for axes in self.inferred.axes[node.name] for axis in axes for leaf in axis.leaves()}
        found = self.facts[node.name] = {leaf: self._fact(node, leaf) for leaf in leaves}
        if _writes(node):
            for name in self.written[node.name] & self.facts.keys() - {node.name}:  # some or all of it is new
                self.facts[name] = {leaf: old & found[leaf] for leaf, old in self.facts[name].items() if leaf in found}
        if node.name in self.inferred.live:
            self._note_reads(node)

    def _computed(self, node: Node) -> Any:
        if node.op in ("state", "constant"):
            return (self.state if node.op == "state" else self.graph.constants)[node.args[0]].detach().cpu()
        args = [self._resolved(a) for a in node.args]
        if node.op == "getitem":
            return args[0][args[1]]
        with torch.no_grad():
            return operate(node, args, {k: self._resolved(v) for k, v in node.kwargs.items()})

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._resolved(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return self.values[value.name] if isinstance(value, Ref) else value

    def _fact(self, node: Node, leaf: Atom) -> Fact:
        operands = list(self._operands(node, leaf))
        unknown = Fact(_none(leaf), _none(leaf))
        if len(operands) > 1 and len(self._dims(Ref(node.name), leaf)) > 1:
            return unknown  # rows may come from one of them, columns from another
        name, alone = _plain(node.op), _is_alone(node)
        if name in _RULES and not alone:
            return _RULES[name](node, operands, unknown)
        return _carried(operands, unknown, _keeps_zero(node, alone))

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
            zero &= blank[positions(self.inferred.axes[ref.name][0][dim])[leaf]].all(1)
        return Fact(zero, ~_none(leaf))

    def _note_reads(self, node: Node) -> None:
        """Where a leaf is summed over: a product is zero where one factor is, and still where all are."""
        note = self.inferred.notes.get(node.name)
        refs = dict(_places(node))
        found: dict[tuple[Atom, Any], list[Fact]] = {}
        for read in note.reads if note else ():
            for leaf in dict.fromkeys(read.over.leaves()):
                fact = self._of(refs[read.place], leaf, [read.dim])
                found.setdefault((leaf, _sum_of(node, read)), []).append(fact)
        for (leaf, _), facts in found.items():
            zero = reduce(torch.logical_or, [f.zero for f in facts])
            fact = Fact(zero, zero | reduce(torch.logical_and, [f.still for f in facts]))
            self.read[leaf] = self.read[leaf] & fact if leaf in self.read else fact


def _places(node: Node) -> Iterator[tuple[Place, Ref]]:
    if node.op == "getitem":
        yield Place("self"), node.args[0]
    for arg, value in node.bound().items():
        if isinstance(value, list):
            items: list[Any] = value
            yield from ((Place(arg, i), v) for i, v in enumerate(items) if isinstance(v, Ref))
        else:
            yield from ((Place(arg), ref) for ref in find_refs(value))


def _sum_of(node: Node, read: Read) -> Any:
    """For which sum of the operation: the letter of an einsum, the dimension where nothing is multiplied."""
    if _plain(node.op) != "einsum":
        return None if _plain(node.op) in _RULES else read.dim
    return node.args[0].replace(" ", "").partition("->")[0].split(",")[read.place.index or 0][read.dim]


def _written(program: Program) -> dict[str, set[str]]:
    """Values whose memory is written to -> all that may share it."""
    shared: dict[str, set[str]] = {}
    for node in program.nodes:
        names = {node.name}.union(*(shared[name] for name in _sharing(node)))
        shared.update(dict.fromkeys(names, names))
    written = {name for node in program.nodes if _writes(node) for name in shared[node.name]}
    return {name: shared[name] for name in written}


def _sharing(node: Node) -> list[str]:
    """The operands whose memory the result may be in."""
    if "." not in node.op or _plain(node.op) in ("dropout", "feature_dropout", "alpha_dropout", "type_as", "einsum"):
        return [ref.name for ref in node.refs()]
    bound = node.bound()
    shared = [bound.get(a.name) for a in overload(node.op)._schema.arguments if a.alias_info is not None]
    return [ref.name for ref in find_refs(shared)]


def _writes(node: Node) -> bool:
    return "." in node.op and overload(node.op)._schema.is_mutable


def _plain(op: str) -> str:
    """`aten.relu_.default` -> `relu`."""
    return (op.split(".")[1] if "." in op else op).removesuffix("_")


def _none(leaf: Atom) -> Tensor:
    return torch.zeros(leaf.size, dtype=torch.bool)


def _is_alone(node: Node) -> bool:
    """Does it act on each element of one tensor, and take nothing else but numbers?"""
    return pointwise.RULES.get(_plain(node.op)) is pointwise.pointwise and len(list(node.refs())) == 1


def _keeps_zero(node: Node, alone: bool) -> bool:
    """Is the result zero where the operands are? An operation on each element of one tensor is tried on a zero."""
    if isinstance(node.out, Meta) and not node.out.dtype.is_floating_point:
        return False
    if not alone:
        return _plain(node.op) in _MOVES
    args, kwargs = ([torch.zeros(1) if isinstance(a, Ref) else a for a in node.args], dict(node.kwargs))
    return not any(isinstance(k, Ref) for k in kwargs.values()) and not bool(operate(node, args, kwargs).any())


Rule = Callable[[Node, list[Operand], Fact], Fact]
"""(node, its operands, the fact that nothing is known) -> the fact of the result."""


def _product(node: Node, operands: list[Operand], unknown: Fact) -> Fact:
    added = "self" if "add" in node.op else "bias"
    factors = [o for o in operands if o.arg != added]
    zero = reduce(torch.logical_or, [o.fact.zero for o in factors if o.fact], unknown.zero)
    still = zero | _all_still(factors, unknown)
    return _sum(node, [Operand("", Fact(zero, still), False, False), *(o for o in operands if o.arg == added)], unknown)


def _sum(_: Node, operands: list[Operand], unknown: Fact) -> Fact:
    zero = reduce(torch.logical_and, [o.fact.zero for o in operands if o.fact], ~unknown.zero)
    blank = all(o.fact or o.blank for o in operands)
    return Fact(zero if blank else unknown.zero, _all_still(operands, unknown))


def _all_still(operands: list[Operand], unknown: Fact) -> Tensor:
    held = [o.fact.still for o in operands if o.fact]
    if not held or not all(o.constant for o in operands if o.fact is None):
        return unknown.still
    return reduce(torch.logical_and, held)


def _norm(node: Node, operands: list[Operand], unknown: Fact) -> Fact:
    """(x - mean) / deviation * weight + bias; only where each channel has a mean of its own, still units stay still."""
    named = {o.arg: o.fact for o in operands if o.fact}
    zero, still = unknown.zero, unknown.still
    of_channels = _plain(node.op) in ("batch_norm", "instance_norm") and ("running_mean" in named or "weight" in named)
    if of_channels and "input" in named:
        zero = reduce(torch.logical_and, [named[n].zero for n in ("input", "running_mean") if n in named])
        still = _all_still(operands, unknown)
    if "weight" in named:
        zero, still = zero | named["weight"].zero, still | named["weight"].zero
    bias = named.get("bias")
    return Fact(zero & bias.zero, still & bias.still) if bias else Fact(zero, still)


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
        "linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d matmul mm bmm mv "
        "dot mul addmm addmv baddbmm embedding".split(),
        _product,
    ),
    **dict.fromkeys(("add", "sub"), _sum),
    **dict.fromkeys(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"), _norm),
    **dict.fromkeys(("cat", "stack"), _joined),
    "scaled_dot_product_attention": _attention,
}
