"""What shall happen before and after each step of an optimizer, whatever wraps or compiles it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from prunus.errors import PlanError
from prunus.graph.private import unwrap

Act: TypeAlias = Callable[[Optimizer], None]


def before_step(optimizer: Optimizer, act: Act) -> RemovableHandle:
    """Call `act(optimizer)` ahead of each step that is really taken, when its gradients are there.

    A step that is given a closure computes its gradients itself: then `act` follows the closure.
    """
    eager: Any = torch.compiler.disable(_ahead(act))
    return inner(optimizer).register_step_pre_hook(eager)


def after_step(optimizer: Optimizer, act: Act) -> RemovableHandle:
    """Call `act(optimizer)` after each step that is really taken, with the torch optimizer that takes it.

    A step that a gradient scaler or gradient accumulation leaves out is none. Where the step is compiled, `act` is not:
    what it decides on changes from step to step, and each change would compile anew.
    """
    return inner(optimizer).register_step_post_hook(_eager(act))


def after_every_step(act: Act) -> RemovableHandle:
    """The same for every torch optimizer there is, or will be."""
    return register_optimizer_step_post_hook(_eager(act))


def inner(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside a wrapper of Accelerate or Lightning, which takes no hooks itself."""
    while "_optimizer_step_post_hooks" not in vars(optimizer):
        within = getattr(optimizer, "optimizer", None)
        if not isinstance(within, Optimizer):
            raise PlanError(
                f"{type(optimizer).__name__} takes no hooks, so nothing can be done after its steps; expected a "
                "torch.optim.Optimizer, or a wrapper with one as its `optimizer`. Pass the optimizer inside."
            )
        optimizer = within
    return optimizer


def check_trains(optimizer: Optimizer, model: nn.Module, who: str) -> None:
    """Raise `PlanError` when an optimizer trains no parameter of the model that `who` was attached to."""
    own = {id(p) for p in unwrap(model).parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise PlanError(
            f"The optimizer trains another model than the one {who} was attached to; was it carried to a smaller one? "
            "Detach first: leave the `with` block, or call detach() of what attach() returned."
        )


def _ahead(act: Act) -> Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], Any]:
    def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _left_out(optimizer):
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        if closure is None:
            return act(optimizer)

        def followed() -> Any:
            loss = closure()
            act(optimizer)
            return loss

        given = (args[0], followed, *args[2:]) if len(args) > 1 else args
        return given, {**kwargs, "closure": followed} if "closure" in kwargs else kwargs

    return hook


def _eager(act: Act) -> Callable[..., None]:
    def hook(optimizer: Optimizer, *_: object) -> None:
        if not _left_out(optimizer):
            act(optimizer)

    eager: Any = torch.compiler.disable(hook)
    return eager


def _left_out(optimizer: Optimizer) -> bool:
    """Will or did a fused kernel leave this step out, for gradients that a scaler has found infinite?"""
    return bool(getattr(optimizer, "found_inf", False))
