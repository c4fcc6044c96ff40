"""The reference of proofs: the full-width program in which removed units count as zero wherever they are added up.

Every contraction (linear, conv, matmul, sum, mean, norm, statistics of normalisation) reads removed indices as zero
and counts only kept ones; a router reads them as minus infinity. What a smaller model computes must equal what this
computes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from prunus.graph.graph import Mode
from prunus.graph.infer import Inferred
from prunus.graph.interpret import operate
from prunus.graph.node import Node, Ref, overload, signature
from prunus.graph.see import Place, Read
from prunus.graph.width import Keep, mask_of, touched

Masks = dict[Place, dict[int, Tensor]]


class Reference:
    """Computes nodes of the full-width program of `mode`, as if only the units of `keep` were there."""

    def __init__(self, mode: Mode, keep: Keep, alive: Keep) -> None:
        """`alive` are the units the model at hand still has; `keep` those that shall stay."""
        self.masks = {
            node.name: masks for node in mode.program.nodes if (masks := _masks_of(node, mode.inferred, keep, alive))
        }
        self.whole = mode.whole.nodes
        self.choosing = {name for name in self.masks if any(r.chooses for r in mode.inferred.notes[name].reads)}

    def __call__(self, node: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        masks = self.masks.get(node.name)
        if not masks:
            return operate(node, args, kwargs)
        names, defaults = signature(node.op)
        bound = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        removed = -inf if node.name in self.choosing else 0.0
        for place, dims in masks.items():
            _mask_argument(bound, place, dims, removed)
        name = node.op.split(".")[1]
        counts = name in _COUNTING and node.name not in self.whole
        return _COUNTING[name](node, bound, masks) if counts else _operate_bound(node, bound)


def _masks_of(node: Node, inferred: Inferred, keep: Keep, alive: Keep) -> Masks:
    """For every argument that is contracted: the dimension and which of the indices at hand stay."""
    note = inferred.notes.get(node.name)
    found: Masks = {}
    bound = node.bound() if note and note.reads else {}
    for read in note.reads if note else ():
        axis = inferred.of(_source(bound, read).name)[read.dim]
        if touched(axis, keep):
            found.setdefault(read.place, {})[read.dim] = mask_of(axis, keep)[mask_of(axis, alive)]
    return found


def _source(bound: dict[str, Any], read: Read) -> Ref:
    value = bound[read.place.arg]
    return value if read.place.index is None else value[read.place.index]


def _mask_argument(bound: dict[str, Any], place: Place, dims: dict[int, Tensor], removed: float) -> None:
    value = bound[place.arg] if place.index is None else bound[place.arg][place.index]
    for dim, mask in dims.items():
        value = torch.where(_along(mask.to(value.device), dim, value.ndim), value, value.new_full((), removed))
    if place.index is None:
        bound[place.arg] = value
    else:
        bound[place.arg] = [value if i == place.index else v for i, v in enumerate(bound[place.arg])]


def _along(mask: Tensor, dim: int, ndim: int) -> Tensor:
    return mask.view([-1 if d == dim else 1 for d in range(ndim)])


def _operate_bound(node: Node, bound: dict[str, Any]) -> Any:
    names, _ = signature(node.op)
    keyword = {n: v for n, v in bound.items() if n in _keyword_only(node.op)}
    return operate(node, [bound[n] for n in names if n in bound and n not in keyword], keyword)


def _keyword_only(op: str) -> set[str]:
    return {a.name for a in overload(op)._schema.arguments if a.kwarg_only}


def _mean(node: Node, bound: dict[str, Any], masks: Masks) -> Tensor:
    dims = masks[Place("self")]
    share = prod(mask.numel() for mask in dims.values()) / prod(int(mask.sum()) for mask in dims.values())
    return _operate_bound(node, bound) * share


def _layer_norm(node: Node, bound: dict[str, Any], masks: Masks) -> Tensor:
    x: Tensor = bound["input"]
    over = list(range(-len(bound["normalized_shape"]), 0))
    mask = torch.ones([], dtype=torch.bool, device=x.device)
    for dim, kept in masks[Place("input")].items():
        mask = mask & _along(kept.to(x.device), dim, x.ndim)
    count = mask.expand(*[1] * (x.ndim - len(over)), *x.shape[-len(over) :]).sum()
    centered = x if "rms" in node.op else torch.where(mask, x - x.sum(over, keepdim=True) / count, 0.0)
    eps = bound["eps"] if bound["eps"] is not None else torch.finfo(x.dtype).eps
    y = centered * torch.rsqrt(centered.square().sum(over, keepdim=True) / count + eps)
    return _affine(y, bound.get("weight"), bound.get("bias"))


def _group_norm(_: Node, bound: dict[str, Any], masks: Masks) -> Tensor:
    x: Tensor = bound["input"]
    groups: int = bound["num_groups"]
    mask = masks[Place("input")][1].view(groups, -1).to(x.device, x.dtype)
    y = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    weight = mask[None, :, :, None]
    count = (weight.sum((2, 3), keepdim=True) * y.shape[-1]).clamp(min=1)
    y = (y - (y * weight).sum((2, 3), keepdim=True) / count) * weight
    y = y * torch.rsqrt(y.square().sum((2, 3), keepdim=True) / count + bound["eps"])
    shape = [-1] + [1] * (x.ndim - 2)
    entries = (bound[k].view(shape) if bound[k] is not None else None for k in ("weight", "bias"))
    return _affine(y.reshape(x.shape), *entries)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


_COUNTING: dict[str, Callable[[Node, dict[str, Any], Masks], Tensor]] = {
    "mean": _mean,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
}
