"""What an op rule sees and says: the axes of its arguments, and its notes on sizes, readings and MACs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prunus.graph.axes import Algebra, Axes, Axis, fresh
from prunus.graph.node import Meta


@dataclass(frozen=True)
class Place:
    """Where a value stands among the arguments: by name, and by index where the argument is a list."""

    arg: str
    index: int | None = None


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor argument: where it stands, its shape, its axes, whether it is made of state alone, and all zero.

    `points` is the axis that its entries are indices of, where they came from a choice among that axis.
    """

    place: Place
    meta: Meta
    axes: Axes
    state: bool
    blank: bool = False
    points: Axis | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.meta.shape

    @property
    def ndim(self) -> int:
        return len(self.meta.shape)


@dataclass(frozen=True, eq=False)
class Read:
    """The operation reads `place` along dimension `dim` and adds up over the axis `over`: what is removed of it must
    count as zero; or, where it chooses the largest, as minus infinity."""

    place: Place
    dim: int
    over: Axis
    chooses: bool = False


@dataclass
class Note:
    """What the rewriting, the reference and the costs need to know of one node."""

    sizes: dict[Place, Axis] = field(default_factory=dict[Place, Axis])
    """Integer arguments that are the size of an axis."""
    minus: set[Place] = field(default_factory=set[Place])
    """Those of them that count from the back, so that they are minus that size."""
    less: dict[Place, int] = field(default_factory=dict[Place, int])
    """Those of them that are so much less than the size."""
    defaults: dict[str, tuple[Axis, Any]] = field(default_factory=dict[str, "tuple[Axis, Any]"])
    """Arguments whose default depends on the size of an axis, with the value they had at full width."""
    reads: list[Read] = field(default_factory=list[Read])
    points: dict[int, Axis] = field(default_factory=dict[int, Axis])
    """Which of the results are indices, and of what axis."""
    apart: list[tuple[Axis, Axis, str]] = field(default_factory=list["tuple[Axis, Axis, str]"])
    """Axes that must not become equally long, and why."""
    inner: list[Axis] = field(default_factory=list[Axis])
    """Axes of what the node computes on the way and hands to nobody: units of lower layers."""
    macs: tuple[Axis, ...] | None = None
    """Multiply-accumulates of the node: the product of the sizes of these axes."""
    each: tuple[Axis, ...] | None = None
    """Of these, those of each element of a weight, where several weights are no factors of each other."""


class See:
    """The context of one rule call."""

    def __init__(self, algebra: Algebra, out: tuple[Meta, ...], used: frozenset[int] = frozenset()) -> None:
        """`used` are those of several results that something reads."""
        self.algebra = algebra
        self.out = out
        self.used = used
        self.note = Note()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the (first) result."""
        return self.out[0].shape

    def unify(self, a: Axis, b: Axis) -> Axis:
        return self.algebra.unify(a, b)

    def fix(self, axis: Axis, reason: str) -> None:
        self.algebra.say(axis, "fixed", reason)

    def inexact(self, axis: Axis, reason: str) -> None:
        self.algebra.say(axis, "inexact", reason)

    def fixed(self, size: int, reason: str) -> Axis:
        """A new axis that cannot be pruned."""
        axis = fresh(size)
        self.fix(axis, reason)
        return axis

    def size(self, arg: str, axis: Axis, index: int | None = None, *, minus: bool = False, less: int = 0) -> None:
        """The integer argument `arg` (or its entry `index`) is the size of `axis`, or minus it, or `less` than it."""
        self.note.sizes[Place(arg, index)] = axis
        if less:
            self.note.less[Place(arg, index)] = less
        if minus:
            self.note.minus.add(Place(arg, index))

    def together(self, axes: list[Axis]) -> None:
        """These axes may lose different indices, but equally many."""
        self.algebra.together.append(tuple(axes))

    def read(self, value: Value, *dims: int, over: Axis | None = None) -> None:
        """`value` is contracted along `dims` (over the part `over` of them only, where given)."""
        for dim in dims:
            self.note.reads.append(Read(value.place, dim % value.ndim, over or value.axes[dim]))

    def choose(self, value: Value, dim: int) -> None:
        """The largest along `dim` count: what is removed of it must never be among them."""
        self.note.reads.append(Read(value.place, dim % value.ndim, value.axes[dim], chooses=True))

    def numbers(self, value: Value) -> None:
        """The entries of `value` are used as numbers: what they point to must keep its numbering."""
        if value.points is not None:
            self.fix(value.points, "its indices are used as numbers")

    def contract(self, a: Value, i: int, b: Value, j: int) -> None:
        """`a` along `i` meets `b` along `j` in a sum of products."""
        self.unify(a.axes[i], b.axes[j])
        self.read(a, i)
        self.read(b, j)

    def macs(self, *axes: Axis) -> None:
        self.note.macs = axes
