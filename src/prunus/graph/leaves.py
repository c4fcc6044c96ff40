"""Resolve the facts of inference to leaves: what is fixed, inexact, tied, or follows an input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prunus.graph.axes import Algebra, Atom, Axes
from prunus.graph.exact import inexact_leaves
from prunus.graph.graph import Leaves, Mode
from prunus.graph.nest import Path


def gather(
    algebra: Algebra, outside: Mapping[tuple[str, Any], Axes], paths: list[Path], modes: Sequence[Mode]
) -> Leaves:
    """Resolve the facts to leaves."""
    moving = _moving(outside, paths)
    together = _together(algebra)
    fixed: dict[Atom, str] = {}
    inexact: dict[Atom, str] = {}
    tags: dict[Atom, set[str]] = {}
    routed = {leaf for fact in algebra.facts if fact.kind == "expert" for leaf in fact.axis.leaves()}
    for fact in algebra.facts:
        for leaf in fact.axis.leaves():
            if fact.kind == "fixed" or (fact.kind == "weighed" and leaf not in routed):
                fixed.setdefault(leaf, fact.reason)
            elif fact.kind == "weighed" or fact.kind == "inexact":
                inexact.setdefault(leaf, fact.reason)
            else:
                tags.setdefault(leaf, set()).add(fact.kind)
    for leaf, reason in inexact_leaves(modes[0].program, modes[0].inferred).items():
        inexact.setdefault(leaf, reason)
    for leaf in _beyond(modes[0]):
        fixed.setdefault(leaf, "a path that these inputs do not take may read it")
    reached = {leaf for mode in modes for leaf in _reached(mode)}
    for leaf in (leaf for axes in outside.values() for axis in axes for leaf in axis.leaves()):
        if leaf not in reached:
            fixed.setdefault(leaf, "no operation reads it with these inputs")
    _spread(fixed, together)
    least: dict[Atom, int] = {}
    for axis, count in algebra.least:
        for leaf in axis.leaves():
            least[leaf] = max(count, least.get(leaf, 1))
    consumed = {pair for mode in modes for pair in _consumed(mode)}
    return Leaves(fixed, inexact, tags, moving, together, consumed, least)


def _beyond(mode: Mode) -> Iterator[Atom]:
    """What is alive where the path begins to depend on values, if some state is never read: another path may be."""
    read = {ref.name for node in mode.program.nodes for ref in node.refs()}
    state = {n.args[0]: n for n in mode.program.nodes if n.op == "state" and n.meta.dtype.is_floating_point}
    if mode.program.depends and any(node.name not in read for node in state.values()):
        for name in mode.proven.outputs:
            yield from (leaf for axis in mode.inferred.of(name) for leaf in axis.leaves())


def _spread(fixed: dict[Atom, str], together: Sequence[tuple[Atom, ...]]) -> None:
    """What must stay as long as a fixed leaf is fixed too."""
    changed = True
    while changed:
        changed = False
        for tie in together:
            reason = next((fixed[leaf] for leaf in tie if leaf in fixed), None)
            free = [leaf for leaf in tie if leaf not in fixed]
            if reason is not None and free:
                fixed.update(dict.fromkeys(free, f"must stay as long as another piece of a split ({reason})"))
                changed = True


def _reached(mode: Mode) -> Iterator[Atom]:
    """Leaves that some value has which is not made of state alone, or that is inside an operation."""
    for name, many in mode.inferred.axes.items():
        if name not in mode.inferred.roots:
            yield from (leaf for axes in many for axis in axes for leaf in axis.leaves())
            note = mode.inferred.notes.get(name)
            yield from (leaf for axis in (note.inner if note else ()) for leaf in axis.leaves())


def _consumed(mode: Mode) -> Iterator[tuple[str, Atom]]:
    for node in mode.program.nodes:
        note = mode.inferred.notes.get(node.name)
        bound = node.bound() if note and note.reads else {}
        for read in note.reads if note else ():
            value = bound[read.place.arg]
            ref = value if read.place.index is None else value[read.place.index]
            for state in mode.inferred.roots.get(ref.name, ()):
                yield from ((state, leaf) for leaf in read.over.leaves())


def _moving(outside: Mapping[tuple[str, Any], Axes], paths: list[Path]) -> dict[Atom, tuple[int, int]]:
    """Leaves that are a whole input dimension and no whole dimension of state: they follow the input."""
    still = {atom for (kind, _), axes in outside.items() if kind != "input" for axis in axes for atom in axis.atoms}
    moving: dict[Atom, tuple[int, int]] = {}
    for index, path in enumerate(paths):
        for dim, axis in enumerate(outside["input", path]):
            atoms = axis.atoms
            if len(atoms) == 1 and atoms[0].segments is None and atoms[0] not in still:
                moving.setdefault(atoms[0], (index, dim))
    return moving


def _together(algebra: Algebra) -> tuple[tuple[Atom, ...], ...]:
    """Leaves that must stay equally many; axes that do not factor alike are fixed instead."""
    tied: list[tuple[Atom, ...]] = []
    for axes in algebra.together:
        leaves = [list(axis.leaves()) for axis in axes]
        if len({tuple(leaf.size for leaf in row) for row in leaves}) == 1:
            tied.extend(t for t in zip(*leaves, strict=True) if len(set(t)) > 1)
        else:
            for axis in axes:
                algebra.say(axis, "fixed", "pieces of a split that must stay equally long")
    return tuple(tied)
