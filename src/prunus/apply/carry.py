"""`carry`: an optimizer goes on with the smaller model, in the middle of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from prunus.apply.build import cut_one
from prunus.errors import PlanError
from prunus.graph.private import state_of, unwrap
from prunus.graph.width import counts, length
from prunus.plan import Plan


def carry(optimizer: Optimizer, model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Let `optimizer`, which trains `model`, train `small = shrink(model, plan)` from now on, in place.

    Momentum, moments and every other state tensor of a weight's shape are cut as the weight was; step counts and all
    settings stay. Because the optimizer is the same object, learning-rate schedulers and gradient scalers go on as they
    are. An averaged model (EMA) is a model of the same structure: `ema.module = shrink(ema.module, plan)`.

    Raises `PlanError` when the optimizer holds a parameter that is not one of `model`, or state that cannot be cut, and
    when `small` does not have the shapes the plan leaves; then nothing is changed.

    >>> import torch, prunus
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> net(torch.randn(2, 4)).sum().backward()
    >>> optimizer.step()
    >>> groups = prunus.group(prunus.trace(net, torch.randn(2, 4)))
    >>> plan = prunus.allocate(
    ...     groups, prunus.score(net, groups, prunus.criteria.magnitude), prunus.Budget("units", at_most=0.5)
    ... )
    >>> small = prunus.shrink(net, plan)
    >>> prunus.carry(optimizer, net, small, plan)
    >>> optimizer.state[small[0].weight]["momentum_buffer"].shape
    torch.Size([4, 4])
    """
    names = {id(tensor): name for name, tensor in state_of(unwrap(model)).tensors.items()}
    after = state_of(unwrap(small)).tensors
    old = [p for group in optimizer.param_groups for p in group["params"]]
    stranger = next((p for p in old if id(p) not in names), None)
    if stranger is not None:
        raise PlanError(
            f"The optimizer holds a parameter of shape {tuple(stranger.shape)} that is none of the model's. Pass the "
            "model it was made for, before it is replaced."
        )
    _check_cut(after, plan, [names[id(p)] for p in old])
    state: Mapping[Any, Any] = dict(optimizer.state)
    moved = {
        after[names[id(p)]]: _cut(plan, names[id(p)], p, state[p]) for p in old if p in state
    }  # all is cut before anything is replaced
    for group in optimizer.param_groups:
        group["params"] = [after[names[id(p)]] for p in group["params"]]
    optimizer.state.clear()
    optimizer.state.update(moved)


def _check_cut(after: Mapping[str, Tensor], plan: Plan, names: Iterable[str]) -> None:
    """The smaller model must have these parameters at the widths that the plan leaves."""
    left = counts(plan.left)
    for name in names:
        wanted = tuple(length(axis, left) for axis in plan.graph.state_axes[name])
        found = tuple(after[name].shape) if name in after else None
        if found != wanted:
            raise PlanError(
                f"The smaller model has {name!r} of shape {found}, but the plan leaves {wanted}. Pass "
                "small = shrink(model, plan), made by this very plan."
            )


def _cut(plan: Plan, name: str, weight: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one weight, tensors of its shape cut like it."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == weight.shape and value.ndim:
            value = cut_one(plan.graph, name, value, plan.left, plan.groups.alive).clone()
        elif isinstance(value, Tensor) and value.numel() > 1:
            raise PlanError(
                f"The optimizer keeps {key!r} of shape {tuple(value.shape)} for {name!r}, {tuple(weight.shape)}; only "
                "state of the weight's own shape can be cut with it. Make a new optimizer for the smaller model."
            )
        found[key] = value
    return found
