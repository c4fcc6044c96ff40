"""One plan for all processes that train one model together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import distributed

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
