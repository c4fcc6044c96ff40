"""Which units are dead in a model as it is: where they are read they are zero, or never change, whatever the input.

Known zeros of the weights are followed through the captured operations of each mode: what only train mode reads, as an
auxiliary head does, counts as well, and a unit is dead where it is so in all of them. Of each value and each leaf on
its axes two facts are kept a unit: `zero` (its slice is zero) and `still` (its slice does not depend on the input,
though it may be drawn at random); a slice is all that has the unit's index on any dimension. What no rule
speaks of is neither: facts are never guessed. All else is taken to be finite, so that zero times it is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from prunus.graph.aliases import sharing, writes
from prunus.graph.axes import Atom
from prunus.graph.graph import Graph, Mode
from prunus.graph.interpret import operate
from prunus.graph.node import Node, Ref, find_refs
from prunus.graph.program import Program
from prunus.graph.rules import recurrent
from prunus.graph.see import Place, Read
from prunus.graph.still_rules import RULES, Fact, Operand, draws, fact_of
from prunus.graph.width import positions

_SHAPES = frozenset("empty zeros ones full rand randn randint".split())
"""`new_*` and `*_like` of these take nothing but the shape of their operand."""


def dead_units(graph: Graph, state: Mapping[str, Tensor]) -> dict[Atom, Fact]:
    """Leaf -> `zero`: units whose removal changes nothing; `still`: units whose removal takes away constants only.

    `state` has the widths of the graph. Leaves that nothing reads are not named.
    """
    read: dict[Atom, Fact] = {}
    for mode in graph.modes:
        walk = _Walk(graph, mode, state)
        for node in mode.program.nodes:
            walk.visit(node)
        read.update({leaf: fact & read[leaf] if leaf in read else fact for leaf, fact in walk.read.items()})
    return read


class _Walk:
    def __init__(self, graph: Graph, mode: Mode, state: Mapping[str, Tensor]) -> None:
        self.graph, self.state, self.inferred = graph, state, mode.inferred
        self.written = _written(mode.program)
        self.moving = _moving(mode.program, self.written)
        """Values that depend on an input."""
        self.values: dict[str, Any] = {}
        """Values made of state alone, computed."""
        self.facts: dict[str, dict[Atom, Fact]] = {}
        """Facts of all other values."""
        self.read: dict[Atom, Fact] = {}

    def visit(self, node: Node) -> None:
        refs = [ref.name for ref in node.refs()]
        known = node.op != "input" and node.name not in self.written and not draws(node)
        if known and all(name in self.values for name in refs):
            self.values[node.name] = self._computed(node)
            return
        leaves = {leaf for axes in self.inferred.axes[node.name] for axis in axes for leaf in axis.leaves()}
        found = self.facts[node.name] = {leaf: self._fact(node, leaf) for leaf in leaves}
        if writes(node):
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
        unknown = Fact(_none(leaf), _none(leaf) if node.name in self.moving else ~_none(leaf))
        if len(operands) > 1 and len(self._dims(Ref(node.name), leaf)) > 1:
            return unknown  # rows may come from one of them, columns from another
        return fact_of(node, operands, unknown)

    def _operands(self, node: Node, leaf: Atom) -> Iterator[Operand]:
        summed = self._summed(node, leaf)
        for place, ref in _places(node):
            dims = [d for d in self._dims(ref, leaf) if (place, d) not in summed]
            fact = self._of(ref, leaf, dims) if dims else None
            blank = ref.name in self.values and not bool(self.values[ref.name].any())
            yield Operand(place.arg, fact, ref.name not in self.moving, blank)

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
            rows = positions(self.inferred.axes[ref.name][0][dim]).get(leaf)
            if rows is None:  # its axis was fixed before it could be split
                return Fact(_none(leaf), _none(leaf))
            zero &= blank[rows].all(1)
        return Fact(zero, ~_none(leaf))

    def _note_reads(self, node: Node) -> None:
        """Where a leaf is summed over: a product is zero where one factor is, and still where all are."""
        note = self.inferred.notes.get(node.name)
        refs = dict(_places(node))
        found: dict[tuple[Atom, Any], list[Fact]] = {}
        for read in note.reads if note else ():
            for leaf in dict.fromkeys(read.over.leaves()):
                fact = self._of(refs[read.place], leaf, [read.dim])
                for place in _sums_of(node, read):
                    found.setdefault((leaf, place), []).append(fact)
                if _reads_states(node, read):  # the other factor is nobody's argument
                    found[leaf, read.place].append(self._fact(node, leaf))
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


def _sums_of(node: Node, read: Read) -> list[Any]:
    """For which sums of the operation; each weight of a recurrent one has a sum of its own."""
    if node.plain not in recurrent.RULES:
        return [_sum_of(node, read)]
    return recurrent.first_weights(node) if read.place.arg == "input" else [read.place]


def _reads_states(node: Node, read: Read) -> bool:
    """Is it a weight by which a recurrent operation multiplies hidden units?"""
    firsts = recurrent.first_weights(node) if node.plain in recurrent.RULES else [read.place]
    return read.place not in firsts and read.place.arg != "input"


def _sum_of(node: Node, read: Read) -> Any:
    """The letter of an einsum, the dimension where nothing is multiplied."""
    if node.plain != "einsum":
        return None if node.plain in RULES else read.dim
    return node.args[0].replace(" ", "").partition("->")[0].split(",")[read.place.index or 0][read.dim]


def _written(program: Program) -> dict[str, set[str]]:
    """Values whose memory is written to -> all that may share it."""
    shared: dict[str, set[str]] = {}
    for node in program.nodes:
        names = {node.name}.union(*(shared[name] for name in sharing(node)))
        shared.update(dict.fromkeys(names, names))
    written = {name for node in program.nodes if writes(node) for name in shared[node.name]}
    return {name: shared[name] for name in written}


def _moving(program: Program, written: Mapping[str, set[str]]) -> set[str]:
    """The values that depend on an input; where one is written into memory, all that may share it."""
    moving: set[str] = set()
    before = -1
    while len(moving) > before:
        before = len(moving)
        for node in program.nodes:
            if node.op == "input" or (not _takes_shape(node) and any(ref.name in moving for ref in node.refs())):
                moving |= {node.name, *(written[node.name] if writes(node) else ())}
    return moving


def _takes_shape(node: Node) -> bool:
    name = node.plain
    made = name.removeprefix("new_").removesuffix("_like")
    return made != name and made in _SHAPES


def _none(leaf: Atom) -> Tensor:
    return torch.zeros(leaf.size, dtype=torch.bool)
