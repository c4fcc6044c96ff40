"""`Group`, `Groups`: units that can go one by one, and what each of them owns of the model's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from prunus.errors import GroupError
from prunus.graph.axes import Atom
from prunus.graph.graph import Graph
from prunus.graph.grid import Grid
from prunus.graph.width import Keep, mask_of, touched
from prunus.patterns import Channel, Pattern

KINDS = ("channel", "head", "kv_head", "head_dim", "conv_group", "expert", "trunk", "element", "block")


@dataclass(frozen=True, eq=False)
class Member:
    """A state tensor a group owns slices of, along `dim`. A consumer reads the units, a producer makes them."""

    state: str
    dim: int
    consumer: bool


@dataclass(frozen=True, eq=False)
class Group:
    """`size` units that can be removed one by one, and the slices each of them owns.

    `exact` when zeroing the parameters of a unit is the same as removing it; else `why` says what more changes.
    `width` is how many slices one unit is wide where it is made (a head: its head dimension). `grid` says where the
    units lie in the one weight of a group of elements or blocks.
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    exact: bool
    why: str
    width: int
    leaf: Atom = field(repr=False)
    grid: Grid | None = None
    least: int = 1
    """So many units must stay: a router that chooses k experts needs k."""

    @property
    def producers(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if not m.consumer)

    def matches(self, pattern: str) -> bool:
        """Does a glob match the group's name, or a state tensor or module that makes it?"""
        states = [m.state for m in self.producers]
        names = [self.name, *states, *(s.rpartition(".")[0] for s in states)]
        return any(fnmatchcase(name, pattern) for name in names)


class Planned(Protocol):
    """What `Groups.at` needs of a plan."""

    @property
    def groups(self) -> Groups: ...
    @property
    def left(self) -> Keep: ...


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of a model that are up for pruning; `alive` says which units of the model as it was are left.

    `source` is the graph, or None where a pattern was laid over a model that was not traced.
    """

    source: Graph | None
    pattern: Pattern
    items: tuple[Group, ...]
    ties: tuple[tuple[str, ...], ...] = ()
    """Groups that must keep equally many units."""
    every: tuple[Group, ...] = ()
    """All groups of the model, those left out by `only` and `skip` too."""
    alive: Keep = field(default_factory=dict[Atom, Tensor])
    parameters: int = 0
    """Of the whole model, where the pattern lies within tensors."""
    dense: Mapping[str, int] = field(default_factory=dict[str, int])
    """Weights over which the pattern was not laid from the start -> their elements."""
    digest: str = ""

    @property
    def graph(self) -> Graph:
        """The traced model. Raises `GroupError` where there is none."""
        if self.source is None:
            raise GroupError(
                "These groups were laid over a model that was not traced. For what needs its graph, lay them over "
                "prunus.trace(model, inputs) instead of the model."
            )
        return self.source

    @property
    def structure(self) -> str:
        """What a plan is bound to: a digest of operations, wiring and shapes; of shapes alone without a graph."""
        return self.digest or self.graph.structure

    @property
    def laid(self) -> bool:
        """Do the units lie within tensors (elements, N:M, blocks), so that zeros are all that can be made of them?"""
        return not isinstance(self.pattern, Channel)

    @property
    def left_out(self) -> dict[str, int]:
        """Weights that no group here holds, those left out by `only` and `skip` later too -> their elements."""
        later = {g.name: prod(g.grid.shape) for g in self.every if g.grid is not None and g.name not in self}
        return {**self.dense, **later}

    def __iter__(self) -> Iterator[Group]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, name: object) -> bool:
        return name in self._named

    def __getitem__(self, name: str) -> Group:
        try:
            return self._named[name]
        except KeyError:
            raise GroupError(f"There is no group {name!r}; print the groups to see their names.") from None

    @cached_property
    def _named(self) -> dict[str, Group]:
        return {group.name: group for group in self.items}

    def only(self, *patterns: str, kind: str | Sequence[str] | None = None, exact: bool | None = None) -> Groups:
        """Keep the groups that match a glob, a kind and exactness, whichever are given.

        A group tied to one that is left out is left out too: they must stay equally long.
        """
        return self._filtered(lambda g: _chosen(g, patterns, kind, exact), patterns)

    def skip(self, *patterns: str, kind: str | Sequence[str] | None = None, exact: bool | None = None) -> Groups:
        """Leave out the groups that match a glob, a kind and exactness, whichever are given."""
        if not patterns and kind is None and exact is None:
            return self
        return self._filtered(lambda g: not _chosen(g, patterns, kind, exact), patterns)

    def _filtered(self, choose: Callable[[Group], bool], patterns: Sequence[str]) -> Groups:
        for pattern in patterns:
            if not any(group.matches(pattern) for group in self.items):
                raise GroupError(
                    f"No group matches {pattern!r}. Globs are held against group names and the modules and state "
                    f"that make them, such as {', '.join(repr(g.name) for g in self.items[:3]) or 'none here'}."
                )
        chosen = {group.name for group in self.items if choose(group)}
        ties = tuple(tie for tie in self.ties if chosen.issuperset(tie))
        held = {name for tie in self.ties if tie not in ties for name in tie}
        return replace(self, items=tuple(g for g in self.items if g.name in chosen - held), ties=ties)

    def at(self, plan: Planned) -> Groups:
        """The same groups restricted to what a plan leaves."""
        check_kin(self, plan.groups, "The plan", "use the groups it was made from")
        return replace(self, alive=dict(plan.left))

    def left(self, group: Group) -> Tensor:
        """Which units of the traced group are left; (size,) boolean."""
        mask = self.alive.get(group.leaf)
        return torch.ones(group.size, dtype=torch.bool) if mask is None else mask

    def index(self, group: Group, member: Member) -> Tensor:
        """The slices along `member.dim` that each unit left owns, in the model as it is now; (units left, k)."""
        rows = self.graph.owned(member.state, member.dim)[group.leaf]
        mask = self._masks.get((member.state, member.dim))
        if mask is None:
            return rows
        rows = rows[self.left(group)]
        renumbered = mask.cumsum(0) - 1
        return renumbered[rows[mask[rows]]].view(rows.shape[0], -1)

    @cached_property
    def _masks(self) -> dict[tuple[str, int], Tensor]:
        """(state, dim) -> which of its indices are left, where not all are."""
        return {
            (name, dim): mask_of(axis, self.alive)
            for name, axes in self.graph.state_axes.items()
            for dim, axis in enumerate(axes)
            if touched(axis, self.alive)
        }

    def __str__(self) -> str:
        width = max((len(g.name) for g in self.items), default=0)
        lines = [f"{len(self.items)} groups, {sum(int(self.left(g).sum()) for g in self.items)} units"]
        for g in self.items:
            note = "" if g.exact else f"  inexact: {g.why}"
            tensors = f"{len(g.members):>4} tensors" if g.grid is None else f"    of {g.grid.shape}"
            lines.append(f"  {g.name:<{width}}  {int(self.left(g).sum()):>5} {g.kind:<10}{tensors}{note}")
        return "\n".join(
            [*lines, *(f"  {name:<{width}}  left dense: {n} weights" for name, n in self.left_out.items())]
        )


def check_kin(groups: Groups, others: Groups, what: str, instead: str) -> None:
    """Raise `GroupError` unless both speak of the units of one trace, or of one laying, of one model."""
    if others.structure != groups.structure:
        raise GroupError(f"{what} was made for a model of another structure than these groups.")
    alike = others.source is groups.source and not (groups.laid or others.laid)
    if not alike and others.every is not groups.every:
        raise GroupError(
            f"{what} was made on another trace of this model than these groups. Trace (or lay) once and {instead}, or "
            "save the plan and load it with load_plan(directory, groups)."
        )


def _chosen(group: Group, patterns: Sequence[str], kind: str | Sequence[str] | None, exact: bool | None) -> bool:
    kinds = [kind] if isinstance(kind, str) else kind
    for unknown in set(kinds or ()) - set(KINDS):
        raise GroupError(f"Unknown kind {unknown!r}; expected one of {', '.join(KINDS)}.")
    return (
        (not patterns or any(group.matches(p) for p in patterns))
        and (kinds is None or group.kind in kinds)
        and (exact is None or group.exact == exact)
    )


def scattered(groups: Groups, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks over the units left, as masks over the units of the traced model."""
    full: dict[str, Tensor] = {}
    for name, mask in values.items():
        left = groups.left(groups[name]).clone()
        left[left.clone()] = mask
        full[name] = left
    return full


def gathered(groups: Groups, here: Groups, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values over the units that `groups` leave, as values over those that are left `here`, later."""
    stays = {g.name: here.left(g)[groups.left(g)] for g in here}
    return {name: values[name][units.to(values[name].device)] for name, units in stays.items()}
