"""`Ride`: the handle of what rides along in training: it acts on gradients before each optimizer step, and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from prunus.errors import PlanError
from prunus.steps import Act, after_step, before_step


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


def ride(optimizers: Sequence[Optimizer], who: str, before: Act, after: Callable[[], None]) -> Ride:
    """Call `before` ahead of each step of each optimizer, `after` behind each step of the first."""
    if not optimizers:
        raise PlanError(f"{who}.attach(model) was given no optimizer to step with; expected attach(model, optimizer).")
    hooks = [before_step(each, before) for each in optimizers]
    hooks.append(after_step(optimizers[0], lambda _: after()))
    return Ride([hook.remove for hook in hooks])


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
