"""A criterion that looks at training: which weights move away from zero?"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from prunus.errors import CriterionError
from prunus.graph.private import unwrap
from prunus.graph.shards import in_pieces
from prunus.stats import Stats
from prunus.steps import before_step, check_trains


class Movement:
    """-Σ_t lr_t g_t w_t over the steps of training: weights that grow score high, those that shrink below zero.

    Attach it to the model and its optimizers while they train, then use it as a criterion; as one of `Gradual` it
    follows the training. What is held at zero neither gains nor loses. Source: Sanh et al. 2020 (movement pruning),
    arXiv:2005.07683, equation 4, with the weights at hand for the masked ones.

    >>> net = nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> movement = Movement()
    >>> with movement.attach(net, optimizer):
    ...     net(torch.ones(1, 4)).sum().backward()
    ...     optimizer.step()
    >>> movement(Stats(net, ("weight",)))["weight"].shape
    torch.Size([2, 4])
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._watching: Watching | None = None

    def attach(self, model: nn.Module, *optimizers: Optimizer) -> Watching:
        """Add up before each step of these optimizers, until `detach()` or the end of a `with` block.

        An earlier watch ends. Weights in pieces (FSDP2) are refused.
        """
        model = unwrap(model)
        if not optimizers:
            raise CriterionError("Movement.attach(model) was given no optimizer; expected attach(model, optimizer).")
        if in_pieces(model):
            raise CriterionError(
                "Movement cannot follow a model whose weights are in pieces (fully_shard): rank 0 scores a whole copy. "
                "Use magnitude with Gradual there, or DistributedDataParallel."
            )
        if self._watching is not None:
            self._watching.detach()
        for name, p in model.named_parameters():
            known = self._sums.get(name, torch.zeros_like(p, dtype=torch.float32))
            self._sums[name] = known.to(p.device)
        self._watching = Watching([before_step(o, lambda o: self._add(o, model)) for o in optimizers], model)
        return self._watching

    def _add(self, optimizer: Optimizer, model: nn.Module) -> None:
        check_trains(optimizer, model, "Movement")
        names = {id(p): name for name, p in model.named_parameters()}
        scale = getattr(optimizer, "grad_scale", None)  # of a fused optimizer under a gradient scaler
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and id(p) in names:
                    moved = p.grad.detach().float() * p.detach().float()
                    moved = moved if scale is None else moved / scale.to(moved.device)
                    self._sums[names[id(p)]].sub_(moved, alpha=float(group["lr"]))

    def __call__(self, stats: Stats) -> Mapping[str, Tensor]:
        unknown = [name for name, w in stats.weights.items() if self._sums.get(name, w.new_empty(0)).shape != w.shape]
        if unknown:
            raise CriterionError(
                f"Movement has seen no training of {unknown[0]!r} at this shape: attach it to this model and its "
                "optimizer while they train, before it is asked."
            )
        return {name: self._sums[name] for name in stats.weights}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, for checkpoints."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._sums = {name: tensor.clone() for name, tensor in state.items()}


class Watching:
    """Hooks that `detach()`, the end of a `with` block, or the end of the model removes."""

    def __init__(self, hooks: list[RemovableHandle], model: nn.Module) -> None:
        self._hooks = hooks
        weakref.finalize(model, self.detach)

    def detach(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()
