"""What several processes that train one model (`torch.distributed`) must do alike: they follow rank 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, distributed, nn

from prunus.errors import PlanError
from prunus.graph.groups import Groups
from prunus.graph.private import unwrap
from prunus.graph.shards import in_pieces, settle, whole_copy
from prunus.plan import Plan
from prunus.score import Scores


def agreed(plan: Plan) -> Plan:
    """The plan of rank 0, where several processes train one model on data of their own: masks must not differ."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return plan
    every = torch.cat(list(plan.keep.values())).to(_device(), torch.uint8)
    distributed.broadcast(every, src=0)
    parts = every.cpu().bool().split([kept.numel() for kept in plan.keep.values()])
    return replace(plan, keep=dict(zip(plan.keep, parts, strict=True)))


def scored(model: nn.Module, groups: Groups, by: Callable[[nn.Module], Scores]) -> Scores:
    """`by(model)`; where its weights are in pieces, `by` of a whole copy on rank 0, which all processes then have.

    Raises `PlanError` on the other ranks when rank 0 raises: they would wait for it in vain.
    """
    model = unwrap(model)
    settle(model)
    if not in_pieces(model):
        return by(model)
    first = distributed.get_rank() == 0
    whole = whole_copy(model, build=first)
    found: Scores = {}
    told = torch.zeros(1, dtype=torch.uint8, device=_device())
    try:
        if whole is not None:
            found = by(whole)
            told += 1
    finally:
        distributed.broadcast(told, src=0)
    if not bool(told):
        raise PlanError("Rank 0 could not score the model; its own error says why.")
    return {group.name: _of_first(found.get(group.name), int(groups.left(group).sum())) for group in groups}


def _of_first(values: Tensor | None, size: int) -> Tensor:
    """A vector of rank 0, in float64, which holds every other precision."""
    shape = torch.empty(size, dtype=torch.float64, device=_device())
    sent = shape if values is None else values.to(shape)
    distributed.broadcast(sent, src=0)
    return sent


def _device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"
