"""What processes and models that train together must agree on: one plan for all ranks, one model for an optimizer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import distributed, nn
from torch.optim.optimizer import Optimizer

from prunus.errors import PlanError
from prunus.graph.private import unwrap
from prunus.plan import Plan


def agreed(plan: Plan) -> Plan:
    """The plan of rank 0, where several processes train one model on data of their own: masks must not differ."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return plan
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    every = torch.cat(list(plan.keep.values())).to(device, torch.uint8)
    distributed.broadcast(every, src=0)
    parts = every.cpu().bool().split([kept.numel() for kept in plan.keep.values()])
    return replace(plan, keep=dict(zip(plan.keep, parts, strict=True)))


def check_trains(optimizer: Optimizer, model: nn.Module, who: str) -> None:
    """Raise `PlanError` when an optimizer trains no parameter of the model that `who` was attached to."""
    own = {id(p) for p in unwrap(model).parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise PlanError(
            f"The optimizer trains another model than the one {who} was attached to; was it carried to a smaller one? "
            "Detach first: leave the `with` block, or call detach() of what attach() returned."
        )
