"""A plan as a new model: cut where units are slices of whole axes, with zeros where they lie within tensors."""

from __future__ import annotations

from torch import nn

from prunus.apply.mask import masked
from prunus.apply.shrink import shrink
from prunus.plan import Plan


def apply(model: nn.Module, plan: Plan, *, verify: bool = True) -> nn.Module:
    """A new model; `model` is left as it is. Raises what `shrink` raises."""
    return masked(model, plan) if plan.groups.laid else shrink(model, plan, verify=verify)
