"""`Ride`: the handle of what rides along in training: it acts on gradients before each optimizer step, and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from prunus.errors import PlanError

Before: TypeAlias = Callable[[Optimizer], None]
"""Called when the gradients of a step of this optimizer are there, before it takes the step."""


class Ride:
    """What `attach` returns. `detach()` or leaving a `with` block ends it; the weights stay as they are trained."""

    def __init__(self, ends: list[Callable[[], None]]) -> None:
        self._ends = ends

    def detach(self) -> None:
        """End it: the optimizers step as before."""
        while self._ends:
            self._ends.pop()()

    def at_its_end(self, do: Callable[[], None]) -> None:
        """Do this too when it ends, last."""
        self._ends.insert(0, do)

    def __enter__(self) -> Ride:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def ride(optimizers: Sequence[Optimizer], who: str, before: Before, after: Callable[[], None]) -> Ride:
    """Call `before` ahead of each step of each optimizer, `after` behind each step of the first.

    A step that is given a closure computes its gradients itself, so that `before` follows the closure.
    """
    if not optimizers:
        raise PlanError(f"{who}.attach(model) was given no optimizer to step with; expected attach(model, optimizer).")
    hooks: list[RemovableHandle] = [each.register_step_pre_hook(_ahead(before)) for each in optimizers]
    hooks.append(optimizers[0].register_step_post_hook(lambda *_: after()))
    return Ride([hook.remove for hook in hooks])


def _ahead(before: Before) -> Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], Any]:
    def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        if closure is None:
            return before(optimizer)

        def pushed() -> Any:
            loss = closure()
            before(optimizer)
            return loss

        given = (args[0], pushed, *args[2:]) if len(args) > 1 else args
        return given, {**kwargs, "closure": pushed} if "closure" in kwargs else kwargs

    return hook


def trained(optimizer: Optimizer, weights: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights that this optimizer trains."""
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [name for name, weight in weights.items() if id(weight) in own and weight.requires_grad]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, a tied one once."""
    return dict(model.named_parameters())


@torch.no_grad()
def add_gradients(optimizer: Optimizer, weights: Mapping[str, Tensor], added: Mapping[str, Tensor]) -> None:
    """Add to `.grad`, in the scale that a gradient scaler has left the gradients in for a fused optimizer."""
    scale = getattr(optimizer, "grad_scale", None)
    for name, gradient in added.items():
        weight = weights[name]
        gradient = (gradient if scale is None else gradient * scale).to(weight.dtype)
        weight.grad = gradient.clone() if weight.grad is None else weight.grad.add_(gradient)
