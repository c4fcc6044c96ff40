"""Run the op rules over captured programs: every axis of every tensor, and what the operations said of them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prunus.graph.aliases import sharing, written_to
from prunus.graph.axes import Algebra, Axes, Axis, fresh
from prunus.graph.blank import blank_values
from prunus.graph.node import Meta, Node, Out, Ref, find_refs, overload
from prunus.graph.program import Program
from prunus.graph.rules import find_rule, moves, takes_indices
from prunus.graph.rules.pointwise import tensors_in
from prunus.graph.see import Note, Place, See, Value


@dataclass(frozen=True, eq=False)
class Unruled:
    """An operation that has no rule: what it touched is fixed."""

    op: str
    module: str


@dataclass(frozen=True, eq=False)
class Inferred:
    """The axes of every value of one program, and the notes its rules left.

    `roots` names the state that each value made of state alone comes from, `live` the nodes that a result or an act in
    place depends on, `blank` the values that are all zero.
    """

    axes: dict[str, tuple[Axes, ...]]
    notes: dict[str, Note]
    roots: dict[str, frozenset[str]]
    live: frozenset[str]
    blank: frozenset[str]
    unruled: tuple[Unruled, ...]

    def of(self, name: str) -> Axes:
        return self.axes[name][0]


def infer(
    program: Program,
    outside: Mapping[tuple[str, Any], Axes],
    algebra: Algebra,
    whole: Container[str] = (),
) -> Inferred:
    """Infer one program; `outside` holds the axes of state, inputs and constants, shared between programs.

    What is in `whole` is a mean that goes on dividing by the whole count: removing units of it is zeroing them.
    """
    walk = _Walk(algebra, program, whole)
    for node in program.nodes:
        if node.op in ("state", "input", "constant"):
            walk.axes[node.name] = (outside[node.op, node.args[0]],)
            if node.op != "input":
                walk.roots[node.name] = frozenset([node.args[0]] if node.op == "state" else [])
        elif node.op == "getitem":
            walk.take(node, node.args[0].name, node.args[1])
        else:
            walk.visit(node)
        walk.out[node.name] = node.out
    for name in program.outputs:
        for axis in walk.axes[name][0]:
            algebra.say(axis, "fixed", "an output of the model")
        if (name, 0) in walk.pointing:
            algebra.say(walk.pointing[name, 0], "fixed", "indices of it are an output of the model")
    return Inferred(walk.axes, walk.notes, walk.roots, walk.live, walk.blank, tuple(walk.unruled))


def axes_of(tensor: Tensor) -> Axes:
    """Axes for a tensor nothing is known of yet."""
    return tuple(fresh(size) for size in tensor.shape)


def _live(program: Program) -> frozenset[str]:
    """Nodes that a result depends on, or an operation that acts in place."""
    live = set(program.outputs)
    for node in reversed(program.nodes):
        if node.name in live or ("." in node.op and overload(node.op)._schema.is_mutable):
            live.add(node.name)
            live.update(ref.name for ref in node.refs())
    return frozenset(live)


def _used(program: Program, live: frozenset[str]) -> dict[str, frozenset[int]]:
    """Node -> those of its several results that a live node reads."""
    used: dict[str, frozenset[int]] = {}
    for node in program.nodes:
        if node.op == "getitem" and node.name in live:
            source, index = node.args[0].name, node.args[1]
            used[source] = used.get(source, frozenset()) | {index}
    return used


class _Walk:
    def __init__(self, algebra: Algebra, program: Program, whole: Container[str]) -> None:
        self.algebra = algebra
        self.live = _live(program)
        self.blank = blank_values(program)
        self.used = _used(program, self.live)
        self.whole = whole
        self.axes: dict[str, tuple[Axes, ...]] = {}
        self.out: dict[str, Out] = {}
        self.notes: dict[str, Note] = {}
        self.unruled: list[Unruled] = []
        self.roots: dict[str, frozenset[str]] = {}
        self.pointing: dict[tuple[str, int], Axis] = {}
        """(node, which result) -> the axis that its entries are indices of."""
        self.memory: dict[str, set[str]] = {}
        """Node -> the nodes in whose memory its result may be."""

    def take(self, node: Node, source: str, index: int) -> None:
        """One of several results."""
        self.axes[node.name] = (self.axes[source][index],)
        self.memory[node.name] = {node.name} | (self.memory.get(source, {source}) - {source})  # each has its own
        if (source, index) in self.pointing:
            self.pointing[node.name, 0] = self.pointing[source, index]
        if source in self.roots:
            self.roots[node.name] = self.roots[source]

    def visit(self, node: Node) -> None:
        outs = _metas(node.out)
        see = See(self.algebra, outs, self.used.get(node.name, frozenset()))
        said = len(self.algebra.facts)
        acts = bool(outs) or overload(node.op)._schema.is_mutable  # an operation may only write, and return nothing
        made = self._apply(see, node) if acts else ()
        if made is None:
            made = self._fix_all(node, outs)
            self._follow(see, node, self._bound(node), ruled=False)
            self.unruled.append(Unruled(node.op, node.module))
        if node.name not in self.live:  # a result that nobody sees cannot make a removal inexact
            self.algebra.facts[said:] = [f for f in self.algebra.facts[said:] if f.kind not in ("inexact", "trunk")]
        elif node.name in self.whole:
            self.algebra.facts[said:] = [f for f in self.algebra.facts[said:] if f.kind != "inexact"]
        for axes, meta in zip(made, outs, strict=True):
            sizes = tuple(a.size for a in axes)
            assert sizes == meta.shape, f"{node.op} ({node.name}): rule says {sizes}, captured {meta.shape}"
        self.axes[node.name] = made
        self.notes[node.name] = see.note
        self._overwritten(node)
        refs = [ref.name for ref in node.refs()]
        if all(name in self.roots for name in refs):
            self.roots[node.name] = frozenset[str]().union(*(self.roots[name] for name in refs))

    def _apply(self, see: See, node: Node) -> tuple[Axes, ...] | None:
        rule = find_rule(node.op)
        if rule is None:
            return None
        bound = self._bound(node)
        made = rule(see, **bound)
        if made is not None:
            self._follow(see, node, bound, ruled=True)
        for place, axis in see.note.sizes.items():
            given = bound[place.arg] if place.index is None else bound[place.arg][place.index]
            size = (-axis.size if place in see.note.minus else axis.size) - see.note.less.get(place, 0)
            assert given == size, f"{node.op} ({node.name}): rule says {place} is {size}, captured {given}"
        return made if made is None or _is_many(made) else (made,)

    def _follow(self, see: See, node: Node, bound: dict[str, Any], ruled: bool) -> None:
        """Indices stay indices where they are only moved; used as numbers, they fix what they point to."""
        for value in tensors_in(bound):
            if value.points is not None and ruled and moves(node.op):
                see.note.points[0] = value.points
            elif not (ruled and takes_indices(node.op, value.place.arg)):
                see.numbers(value)
        self.pointing.update({(node.name, index): axis for index, axis in see.note.points.items()})

    def _overwritten(self, node: Node) -> None:
        """What is written to the memory of indices need not be an index."""
        self.memory[node.name] = {node.name}.union(*(self.memory.get(name, {name}) for name in sharing(node)))
        written = set[str]().union(*(self.memory.get(name, {name}) for name in written_to(node)))
        for (name, _), axis in self.pointing.items() if written else ():
            if self.memory.get(name, {name}) & written:
                self.algebra.say(axis, "fixed", "its indices are written over")

    def _bound(self, node: Node) -> dict[str, Any]:
        return {name: self._value(Place(name), value) for name, value in node.bound().items()}

    def _value(self, place: Place, value: Any) -> Any:
        if isinstance(value, Ref):
            meta = self.out[value.name]
            if not isinstance(meta, Meta):
                return None  # a number that was read from a tensor
            points = self.pointing.get((value.name, 0))
            return Value(
                place, meta, self.axes[value.name][0], value.name in self.roots, value.name in self.blank, points
            )
        if isinstance(value, list):
            items: list[Any] = value
            return [self._value(Place(place.arg, i), v) if isinstance(v, Ref) else v for i, v in enumerate(items)]
        return value

    def _fix_all(self, node: Node, outs: Sequence[Meta]) -> tuple[Axes, ...]:
        reason = f"{node.op} has no rule"
        for ref in find_refs((node.args, node.kwargs)):
            for axis in self.axes[ref.name][0]:
                self.algebra.say(axis, "fixed", reason)
        made = tuple(tuple(fresh(s) for s in meta.shape) for meta in outs)
        for axis in (axis for axes in made for axis in axes):
            self.algebra.say(axis, "fixed", reason)
        return made


def _metas(out: Out) -> tuple[Meta, ...]:
    return (out,) if isinstance(out, Meta) else out or ()


def _is_many(made: Any) -> bool:
    return bool(made) and not isinstance(made[0], Axis)
