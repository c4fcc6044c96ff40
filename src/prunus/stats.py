"""What a criterion may look at: weights, and gradients of the user's loss, computed only when touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import CriterionError
from prunus.graph.private import private_copy
from prunus.types import Batch, Loss


@dataclass(frozen=True, eq=False)
class Stats:
    """A read-only view of a model for criteria.

    `weights`: state name -> parameter; `grads`: state name -> gradient of the mean loss, of the same shape.
    """

    model: nn.Module
    names: tuple[str, ...]
    data: Iterable[Batch] | None = None
    loss: Loss | None = None
    seed: int = 0

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """Every parameter, detached."""
        named = dict(self.model.named_parameters())
        return {name: named[name].detach() for name in self.names if name in named}

    @cached_property
    def grads(self) -> Mapping[str, Tensor]:
        """Gradients of the loss, mean over the batches."""
        return self.mean(lambda g, _: g)

    def mean(self, of: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        """Mean over batches of `of(gradient, weight)`, both in float32, for every parameter, frozen ones too.

        The model runs in eval mode; half precision would underflow in squares.
        """
        data, loss = self._needed()
        model = _all_trainable(private_copy(self.model).eval())
        named = [(n, p) for n, p in model.named_parameters() if n in self.names and p.requires_grad]
        total = {name: torch.zeros(p.shape, device=p.device) for name, p in named}
        count = 0
        for batch in data:
            grads = torch.autograd.grad(self._loss(model, batch, loss), [p for _, p in named], allow_unused=True)
            reached: list[Tensor | None] = list(grads)
            for (name, p), g in zip(named, reached, strict=True):
                if g is not None:
                    total[name] += of(g.detach().float(), p.detach().float())
            count += 1
        if count == 0:
            raise CriterionError("The data gave no batch; a criterion with gradients needs at least one.")
        return {name: value / count for name, value in total.items()}

    def _needed(self) -> tuple[Iterable[Batch], Loss]:
        if self.data is None or self.loss is None:
            raise CriterionError(
                "This criterion looks at gradients: pass data=batches and loss=loss, where loss(model, batch) is a "
                "scalar tensor, the mean over the batch."
            )
        return self.data, self.loss

    def _loss(self, model: nn.Module, batch: Batch, loss: Loss) -> Tensor:
        with torch.enable_grad():
            value: Any = loss(model, batch)
        if not isinstance(value, Tensor):
            raise CriterionError(
                f"loss(model, batch) gave {value!r}; expected a tensor of one number, with its gradient."
            )
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


def _all_trainable(copy: nn.Module) -> nn.Module:
    """Give a private copy parameters of its own, on the same storage, that all require gradients."""
    own: dict[int, nn.Parameter] = {}
    for module in copy.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            own.setdefault(id(p), nn.Parameter(p.detach(), requires_grad=p.is_floating_point()))
            setattr(module, name, own[id(p)])
    return copy
