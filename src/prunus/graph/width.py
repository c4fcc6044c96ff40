"""How long an axis is, and which of its indices stay, once units are removed."""

from __future__ import annotations

from collections.abc import Mapping
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


def positions(axis: Axis, leaf: Atom) -> Tensor:
    """The indices of `axis` that each unit of `leaf` owns; (leaf.size, k)."""
    found = _find(axis.atoms, leaf)
    assert found is not None, "the leaf does not occur on this axis"
    return found


def _find(atoms: tuple[Atom, ...], leaf: Atom) -> Tensor | None:
    found: list[Tensor] = []
    for place, atom in enumerate(atoms):
        own = _within(atom, leaf)
        if own is None:
            continue
        outer, inner = _width(atoms[:place]), _width(atoms[place + 1 :])
        before = torch.arange(outer)[None, :, None, None] * (atom.size * inner)
        after = torch.arange(inner)[None, None, None, :]
        found.append((before + own[:, None, :, None] * inner + after).flatten(1))
    if len(found) < 2:
        return found[0] if found else None
    return torch.stack([row.unique() for row in torch.cat(found, 1)])  # a product of a leaf with itself


def _within(atom: Atom, leaf: Atom) -> Tensor | None:
    """The indices of `atom` that each unit of `leaf` owns, or None."""
    if atom is leaf:
        return torch.arange(leaf.size)[:, None]
    found: list[Tensor] = []
    start = 0
    for segment in atom.segments or ():
        own = _find(segment.atoms, leaf)
        if own is not None:
            found.append(own + start)
        start += segment.size
    return torch.cat(found, 1) if found else None


def _width(atoms: tuple[Atom, ...]) -> int:
    return Axis(atoms).size
