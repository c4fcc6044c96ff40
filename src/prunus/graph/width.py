"""How long an axis is, and which of its indices stay, once units are removed."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from prunus.graph.axes import Atom, Axes, Axis

Keep: TypeAlias = Mapping[Atom, Tensor]
"""Leaf -> boolean vector of the units that stay; leaves that are not named stay whole."""
Size: TypeAlias = "int | dict[str, Any]"
"""A number, or what it is made of when it follows the size of an input: {"input": i, "dim": d}, {"times": [...]}."""


def counts(keep: Keep) -> dict[Atom, int]:
    """How many units of each leaf stay."""
    return {leaf: int(mask.sum()) for leaf, mask in keep.items()}


def length(axis: Axis, kept: Mapping[Atom, int]) -> int:
    """The number of indices of an axis that stay."""
    total = 1
    for atom in axis.atoms:
        if atom.segments is None:
            total *= kept.get(atom, atom.size)
        else:
            total *= sum(length(segment, kept) for segment in atom.segments)
    return total


def share_of(axes: Axes, kept: Mapping[Atom, int]) -> float:
    """Which part of the indices along all of these axes stays."""
    return prod(length(axis, kept) for axis in axes) / prod(axis.size for axis in axes)


def size_of(axis: Axis, kept: Mapping[Atom, int], moving: Mapping[Atom, tuple[int, int]]) -> Size:
    """The length of an axis as a number, or as an expression of input sizes where leaves follow an input."""
    number, factors = 1, list[Size]()
    for atom in axis.atoms:
        if atom.segments is not None:
            size = _sum([size_of(segment, kept, moving) for segment in atom.segments])
        elif atom in moving:
            size = {"input": moving[atom][0], "dim": moving[atom][1]}
        else:
            size = kept.get(atom, atom.size)
        if isinstance(size, int):
            number *= size
        else:
            factors.append(size)
    if not factors:
        return number
    return factors[0] if number == len(factors) == 1 else {"times": [number, *factors]}


def _sum(sizes: list[Size]) -> Size:
    if all(isinstance(s, int) for s in sizes):
        return sum(s for s in sizes if isinstance(s, int))
    return {"plus": sizes}


def mask_of(axis: Axis, keep: Keep) -> Tensor:
    """Which indices of an axis stay; (axis.size,) boolean."""
    mask = torch.ones(1, dtype=torch.bool)
    for atom in axis.atoms:
        if atom.segments is not None:
            part = torch.cat([mask_of(segment, keep) for segment in atom.segments])
        else:
            part = keep[atom] if atom in keep else torch.ones(atom.size, dtype=torch.bool)
        mask = (mask[:, None] & part[None, :]).flatten()
    return mask


def touched(axis: Axis, keep: Keep) -> bool:
    """Does an axis hold a leaf that loses units?"""
    return any(leaf in keep and not bool(keep[leaf].all()) for leaf in axis.leaves())


def cut_tensor(tensor: Tensor, axes: Axes, keep: Keep) -> Tensor:
    """The part of a tensor that stays."""
    for dim, axis in enumerate(axes):
        if touched(axis, keep):
            tensor = tensor.index_select(dim, mask_of(axis, keep).nonzero().flatten().to(tensor.device))
    return tensor


def positions(axis: Axis) -> dict[Atom, Tensor]:
    """For every leaf of an axis, the indices that each of its units owns; (leaf.size, k)."""
    found: dict[Atom, list[Tensor]] = {}
    _visit(axis.atoms, torch.zeros(1, dtype=torch.int64), 1, found)
    return {leaf: parts[0] if len(parts) == 1 else _distinct(torch.cat(parts, 1)) for leaf, parts in found.items()}


def _distinct(rows: Tensor) -> Tensor:
    """Each index once a row: a leaf that stands twice in one product meets itself."""
    ordered = rows.sort(1).values
    if not bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        return rows
    return torch.stack([row.unique() for row in ordered])


def _visit(atoms: tuple[Atom, ...], starts: Tensor, width: int, found: dict[Atom, list[Tensor]]) -> None:
    """Walk a product laid out at each of `starts` (k,), every index of it `width` slots wide."""
    outer, inner = 1, width
    for atom in atoms:
        inner *= atom.size
    for atom in atoms:
        inner //= atom.size
        begins = (starts[:, None] + torch.arange(outer) * (atom.size * inner)).flatten()
        if atom.segments is None:
            own = torch.arange(atom.size)[:, None, None] * inner + torch.arange(inner)
            found.setdefault(atom, []).append((own + begins[None, :, None]).flatten(1))
        offset = 0
        for segment in atom.segments or ():
            _visit(segment.atoms, begins + offset * inner, inner, found)
            offset += segment.size
        outer *= atom.size
