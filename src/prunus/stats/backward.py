"""Gradients of the user's loss on a private copy, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.errors import CriterionError
from prunus.graph.private import private_copy
from prunus.types import Batch, Loss


def gradients(
    model: nn.Module, names: Iterable[str], data: Iterable[Batch], loss: Loss, *, twice: bool = False
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """For each batch: name -> (parameter, gradient), for all that the loss depends on, frozen ones too.

    The model runs in eval mode. `twice` keeps the gradients differentiable.
    """
    copy = trainable(model)
    wanted = set(names)
    named = [(n, p) for n, p in copy.named_parameters() if n in wanted and p.requires_grad]
    for batch in data:
        value = _value(copy, batch, loss)
        grads = torch.autograd.grad(value, [p for _, p in named], create_graph=twice, allow_unused=True)
        reached: list[Tensor | None] = list(grads)
        yield {name: (p, g) for (name, p), g in zip(named, reached, strict=True) if g is not None}


def hessian_times(
    model: nn.Module, data: Iterable[Batch], loss: Loss, vector: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The Hessian of the loss, mean over the batches, times a vector that has the names of parameters."""
    total = {name: torch.zeros_like(v) for name, v in vector.items()}
    count = 0
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        for found in gradients(model, vector, data, loss, twice=True):
            for name, h in _second(found, vector).items():
                total[name] += h
            count += 1
    if count == 0:
        raise CriterionError("The data gave no batch at the second pass over them; can they be reread? Pass a list.")
    return {name: value / count for name, value in total.items()}


def _second(found: Mapping[str, tuple[Tensor, Tensor]], vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of one batch: the gradient of its gradient's product with the vector."""
    along = torch.stack([(g * vector[name]).sum() for name, (_, g) in found.items()]).sum()
    if not along.requires_grad:
        return {}  # the loss is linear
    try:
        second = torch.autograd.grad(along, [p for p, _ in found.values()], allow_unused=True)
    except RuntimeError as error:
        raise CriterionError(
            f"This criterion takes the gradient of a gradient, which torch refuses here: {error}. Take another "
            "criterion, or replace the operation that it names."
        ) from error
    reached: list[Tensor | None] = list(second)
    return {name: h.detach() for name, h in zip(found, reached, strict=True) if h is not None}


def trainable(model: nn.Module) -> nn.Module:
    """A private copy in eval mode, with parameters of its own on the same storage, all of which require gradients."""
    copy = private_copy(model).eval()
    own: dict[int, nn.Parameter] = {}
    for module in copy.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            own.setdefault(id(p), nn.Parameter(p.detach(), requires_grad=p.is_floating_point()))
            setattr(module, name, own[id(p)])
    return copy


def _value(model: nn.Module, batch: Batch, loss: Loss) -> Tensor:
    with torch.enable_grad():
        value: Any = loss(model, batch)
    if not isinstance(value, Tensor):
        raise CriterionError(f"loss(model, batch) gave {value!r}; expected a tensor of one number, with its gradient.")
    if not value.requires_grad:
        raise CriterionError(
            "loss(model, batch) does not depend on any parameter that requires a gradient; was it detached, or "
            "computed under torch.no_grad()?"
        )
    if value.ndim != 0 or not bool(torch.isfinite(value)):
        raise CriterionError(
            f"loss(model, batch) gave {value.detach().flatten()[:4].tolist()} of shape {tuple(value.shape)}; "
            "expected one finite number."
        )
    return value
