"""The algebra of axes: every axis of every tensor as an ordered product of atoms, inferred by unification.

An axis is a product of atoms, outermost first, as in einops `(three h d)`. An atom is a leaf with a size, or a
concatenation of axes. Axes that must index alike are unified; what cannot be expressed is fixed, never guessed.
Atoms of size one are left out, so an axis of size one is the empty product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal, TypeAlias


class Atom:
    """A leaf (`segments is None`) or a concatenation of axes; `link` forwards to what it has become."""

    __slots__ = ("link", "segments", "size")

    def __init__(self, size: int, segments: tuple[Axis, ...] | None = None) -> None:
        self.size = size
        self.segments = segments
        self.link: tuple[Atom, ...] | None = None

    def __repr__(self) -> str:
        return str(self.size) if self.segments is None else f"[{'|'.join(map(repr, self.segments))}]"


@dataclass(frozen=True, eq=False)
class Axis:
    """One dimension of one tensor. Two dimensions never share an `Axis`, only atoms."""

    parts: tuple[Atom, ...] = ()

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The product as it stands now, outermost first."""
        return resolve(self.parts)

    @property
    def size(self) -> int:
        return prod(atom.size for atom in self.parts)

    def leaves(self) -> Iterator[Atom]:
        """Every leaf below this axis, through concatenations."""
        for atom in self.atoms:
            if atom.segments is None:
                yield atom
            else:
                for segment in atom.segments:
                    yield from segment.leaves()

    def __repr__(self) -> str:
        return f"({' '.join(map(repr, self.atoms))})"


Axes: TypeAlias = tuple[Axis, ...]
Kind = Literal["fixed", "inexact", "weighed", "trunk", "head", "head_dim", "conv_group", "expert"]


def resolve(parts: Iterable[Atom]) -> tuple[Atom, ...]:
    """Follow links; shortens the path as it goes."""
    found: list[Atom] = []
    for atom in parts:
        if atom.link is None:
            found.append(atom)
        else:
            atom.link = resolve(atom.link)
            found.extend(atom.link)
    return tuple(found)


def fresh(size: int) -> Axis:
    """An axis nothing is known of yet."""
    return Axis() if size == 1 else Axis((Atom(size),))


def like(axis: Axis) -> Axis:
    """Another dimension that indexes as `axis` does."""
    return Axis(axis.parts)


def product(axes: Iterable[Axis]) -> Axis:
    """One dimension made of several, outermost first."""
    return Axis(tuple(part for axis in axes for part in axis.parts))


def concat(segments: Sequence[Axis]) -> Axis:
    """One dimension made of several laid end to end."""
    full = [s for s in segments if s.size > 0]
    if len(full) == 1:
        return like(full[0])
    return Axis((Atom(sum(s.size for s in full), tuple(like(s) for s in full)),))


@dataclass(frozen=True)
class Fact:
    """What an operation says of an axis; resolved to leaves only after inference, so that no merge loses it."""

    axis: Axis
    kind: Kind
    reason: str


@dataclass
class Algebra:
    """Unification, with the facts gathered on the way."""

    facts: list[Fact] = field(default_factory=list[Fact])
    together: list[Axes] = field(default_factory=list[Axes])
    """Axes that the code needs to stay equally long."""
    least: list[tuple[Axis, int]] = field(default_factory=list[tuple[Axis, int]])
    """Axes that need so many indices at least."""

    def say(self, axis: Axis, kind: Kind, reason: str) -> None:
        self.facts.append(Fact(axis, kind, reason))

    def unify(self, a: Axis, b: Axis, why: str = "its sizes do not factor alike") -> Axis:
        """Make `a` and `b` index alike, or fix both. Returns a new axis of that index."""
        left, right = list(reversed(a.atoms)), list(reversed(b.atoms))
        while left and right:
            x, y = _pop(left), _pop(right)
            if x.size == y.size:
                self._merge(x, y)
                continue
            big, small, rest = (x, y, left) if x.size > y.size else (y, x, right)
            halves = self.split(big, small.size) if small.size and big.size % small.size == 0 else None
            if halves is None:
                self.say(a, "fixed", why)
                self.say(b, "fixed", why)
                return like(a)
            rest.extend(reversed(halves))
            (right if big is x else left).append(small)
        return like(a)

    def _merge(self, x: Atom, y: Atom) -> None:
        if x is y:
            return
        if x.segments is None or y.segments is None:
            leaf, other = (x, y) if x.segments is None else (y, x)
            leaf.link = (other,)
            return
        bounds = sorted(set(_bounds(x)) | set(_bounds(y)))
        if not (self._refine(x, bounds) and self._refine(y, bounds)):
            for atom in (x, y):
                self.say(Axis((atom,)), "fixed", "concatenated at other places elsewhere")
            return
        pairs = list(zip(x.segments, y.segments, strict=True))
        x.link = (y,)
        for p, q in pairs:
            assert p.size < y.size, "a segment is smaller than its concatenation: the termination proof"
            self.unify(p, q)

    def split(self, atom: Atom, outer: int) -> tuple[Atom, ...] | None:
        """Turn an atom into (outer, inner) atoms; None when a concatenation does not allow it."""
        inner = atom.size // outer
        if inner == 1 or outer == 1:
            return (atom,)
        if atom.segments is None:
            atom.link = (Atom(outer), Atom(inner))
            return atom.link
        if any(s.size % inner for s in atom.segments):
            return None
        halves = [self.factor(s, inner) for s in atom.segments]
        if any(h is None for h in halves):
            return None
        pairs = [h for h in halves if h is not None]
        common = pairs[0][1]
        for _, other in pairs[1:]:
            self.unify(common, other)
        atom.link = (*concat([o for o, _ in pairs]).parts, *common.parts)
        atom.link = resolve(atom.link)
        return atom.link

    def factor(self, axis: Axis, inner: int) -> tuple[Axis, Axis] | None:
        """Read an axis as (outer, inner) with the given inner size; None where its atoms do not allow it."""
        left, right, need = list(axis.atoms), list[Atom](), inner
        while need > 1:
            atom = left.pop()
            if need % atom.size == 0:
                right.insert(0, atom)
                need //= atom.size
                continue
            halves = self.split(atom, atom.size // need) if atom.size % need == 0 else None
            if halves is None:
                return None
            left.extend(halves)
        return Axis(tuple(left)), Axis(tuple(right))

    def cut(self, axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
        """Read an axis as a concatenation of the given sizes; None where its atoms do not allow it."""
        sizes = [s for s in sizes if s > 0]
        if len(sizes) == 1:
            return [like(axis)]
        atoms = axis.atoms
        head, tail = atoms[0], Axis(atoms[1:])
        rest = tail.size
        if any(s % rest for s in sizes):
            return None
        if head.segments is None:
            head.segments = tuple(fresh(s // rest) for s in sizes)
        bounds = _cumulate([s // rest for s in sizes])
        if not self._refine(head, bounds):
            return None
        return [product([piece, tail]) for piece in _gather(head, bounds)]

    def _refine(self, atom: Atom, bounds: Sequence[int]) -> bool:
        """Cut the segments of a concatenation so that every bound is a boundary of segments."""
        refined: list[Axis] = []
        start = 0
        for segment in atom.segments or ():
            stop = start + segment.size
            inside = [b - start for b in bounds if start < b < stop]
            pieces = self.cut(segment, _steps([*inside, segment.size])) if inside else [segment]
            if pieces is None:
                return False
            refined.extend(pieces)
            start = stop
        atom.segments = tuple(refined)
        return True

    def regroup(self, axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
        """Re-factor the flattened product of `axes` into dimensions of the sizes `shape`, as `view` does."""
        pending = list(reversed(product(axes).atoms))
        made: list[Axis] = []
        for size in shape:
            taken = self._take(pending, size) if 0 not in shape else None
            if taken is None:
                for axis in (*axes, *made):
                    self.say(axis, "fixed", "a view re-factors it in a way its atoms do not allow")
                return [*made, *self._opaque(shape[len(made) :])]
            made.append(taken)
        return made

    def _take(self, pending: list[Atom], size: int) -> Axis | None:
        taken: list[Atom] = []
        while size > 1:
            atom = _pop(pending)
            if size % atom.size == 0:
                taken.append(atom)
                size //= atom.size
                continue
            halves = self.split(atom, size) if atom.size % size == 0 else None
            if halves is None:
                return None
            pending.extend(reversed(halves))
        return Axis(tuple(taken))

    def _opaque(self, shape: Sequence[int]) -> list[Axis]:
        made = [fresh(s) for s in shape]
        for axis in made:
            self.say(axis, "fixed", "the result of a view that its atoms do not allow")
        return made


def _pop(stack: list[Atom]) -> Atom:
    atom = stack.pop()
    while atom.link is not None:
        stack.extend(reversed(resolve(atom.link)))
        atom = stack.pop()
    return atom


def _bounds(atom: Atom) -> list[int]:
    return _cumulate([s.size for s in atom.segments or ()])


def _cumulate(sizes: Iterable[int]) -> list[int]:
    total, bounds = 0, list[int]()
    for size in sizes:
        total += size
        bounds.append(total)
    return bounds


def _steps(bounds: Sequence[int]) -> list[int]:
    return [b - a for a, b in zip([0, *bounds], bounds, strict=False)]


def _gather(atom: Atom, bounds: Sequence[int]) -> list[Axis]:
    """The segments of a concatenation between consecutive bounds, each as one axis."""
    pieces: list[Axis] = []
    current: list[Axis] = []
    done = 0
    for segment in atom.segments or ():
        current.append(segment)
        done += segment.size
        if done == bounds[len(pieces)]:
            pieces.append(concat(current))
            current = []
    return pieces
