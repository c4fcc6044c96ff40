"""`GReg`: a squared penalty that grows, on chosen units from the start, or on all until they tell which to choose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from prunus import criteria
from prunus.allocate import Scope, allocate, check_ahead, provenance_of
from prunus.apply.mask import bits_of, with_bits
from prunus.apply.ranks import agreed
from prunus.criteria import Criterion
from prunus.errors import PlanError
from prunus.fingerprint import name_of
from prunus.graph.groups import Groups
from prunus.graph.shards import check_whole
from prunus.plan import Plan
from prunus.regularize.ride import Ride, add_gradients, ride, trained, weights_of
from prunus.regularize.units import fitting, units_of
from prunus.score import Reduce, score
from prunus.steps import check_trains
from prunus.types import Batch, Budget, Loss, wide


class GReg:
    """Σ_k ½ λ_k ‖w_k‖₂² over all that unit k owns; λ grows by `delta` every `every` optimizer steps, to `ceiling`.

    With `pick_at=0` (GReg-1) the units that `budget` removes are chosen when it is attached, and theirs alone grows.
    With `pick_at` above (GReg-2; the paper takes 0.01) the λ of all units grows until it is that large; then the
    magnitudes, which the curvature of the loss has spread apart, choose, and the λ of those that stay is zero again.
    `plan` says what goes; cut it (`shrink`) once λ has been at its ceiling for a while, from step `steps` on.

    The gradient added is λ_k w. A plain step multiplies a pushed weight by 1 - lr λ: keep lr · `ceiling` below 1.
    `criterion`, `reduce`, `scope`, `keep_at_least`, `data`, `loss` are those of `score` and `allocate`.

    Raises `PlanError` for settings that make no sense, and what `score` and `allocate` raise for a criterion that
    lacks something or a budget that cannot be reached, before anything is trained.

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> groups = prunus.group(prunus.trace(net, torch.randn(2, 4)))
    >>> greg = GReg(groups, Budget("units", at_most=0.5), delta=0.01, every=1, ceiling=0.5)
    >>> greg.steps
    50
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    >>> with greg.attach(net, optimizer):
    ...     for _ in range(150):
    ...         optimizer.zero_grad()
    ...         optimizer.step()
    >>> bool(net[0].weight[~greg.plan.keep["0"]].abs().max() < 1e-6)
    True

    Source: Wang et al. 2021, arXiv:2012.09243, equation 3 and algorithm 1, with its defaults for `delta`, `every` and
    `ceiling`. There it is about the weights of filters, here about all that a unit owns, so that norms do not undo it.
    """

    def __init__(
        self,
        groups: Groups,
        budget: Budget,
        *,
        criterion: Criterion = criteria.magnitude,
        delta: float = 1e-4,
        every: int = 10,
        ceiling: float = 1.0,
        pick_at: float = 0.0,
        scope: Scope = "global",
        reduce: Reduce = "sum",
        keep_at_least: float = 0.0,
        data: Iterable[Batch] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> None:
        if not (delta > 0 and every >= 1 and 0 <= pick_at <= ceiling):
            raise PlanError(
                f"GReg(delta={delta}, every={every}, ceiling={ceiling}, pick_at={pick_at}): expected delta above 0, "
                "every at least 1, and pick_at from 0 (choose at once) to ceiling."
            )
        self.groups, self.budget, self.criterion = groups, budget, criterion
        self.delta, self.every, self.ceiling, self.pick_at = delta, every, ceiling, pick_at
        self.scope: Scope = scope
        self.reduce: Reduce = reduce
        self.keep_at_least, self.data, self.loss, self.seed = keep_at_least, data, loss, seed
        self.step = 0
        self.plan = Plan(groups, {}, budget)
        self._units = units_of(groups, "GReg")
        self._ride: Ride | None = None
        check_ahead(groups, criterion, budget, scope=scope, keep_at_least=keep_at_least, data=data, loss=loss)

    @property
    def steps(self) -> int:
        """The optimizer steps after which the penalty is at its ceiling."""
        return self.every * math.ceil(self.ceiling / self.delta - 1e-9)

    def penalty(self, model: nn.Module) -> Tensor:
        """The value of the term in the coming step."""
        squares = self._units.squares(weights_of(fitting(model, self.groups)))
        parts = [(self._growth(name, s.device) * s).sum() for name, s in squares.items()]
        return torch.stack(parts).sum() / 2

    def attach(self, model: nn.Module, *optimizers: Optimizer) -> Ride:
        """Add the gradient before each step of these optimizers; the steps of the first are counted.

        An earlier ride ends. In a `torch.distributed` run all ranks follow the choice of rank 0.
        """
        inner = fitting(model, self.groups)
        check_whole(inner, "GReg")
        if self._ride is not None:
            self._ride.detach()
        self._ride = ride(optimizers, "GReg", lambda optimizer: self._add(inner, optimizer), lambda: self._count(inner))
        self._pick_if_due(inner)
        return self._ride

    def state_dict(self) -> dict[str, Any]:
        """Where this stands, for checkpoints: {"step": int, "picked": bool, "kept": group name -> packed bits}."""
        return {"step": self.step, "picked": self._picked, "kept": bits_of(self.plan)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, before or after `attach`."""
        picked = state.get("picked", bool(state["kept"]))  # before this was written down, what was kept told
        self.plan = Plan(self.groups, {}, self.budget)
        if picked:
            self.plan = replace(with_bits(self.plan, state["kept"]), provenance=self._provenance())
        self.step = int(state["step"])

    def _count(self, model: nn.Module) -> None:
        self.step += 1
        self._pick_if_due(model)

    def _pick_if_due(self, model: nn.Module) -> None:
        if not self._picked and self._level() >= self.pick_at:
            scores = score(
                model, self.groups, self.criterion, data=self.data, loss=self.loss, reduce=self.reduce, seed=self.seed
            )
            plan = allocate(self.groups, scores, self.budget, scope=self.scope, keep_at_least=self.keep_at_least)
            self.plan = replace(agreed(plan), provenance=self._provenance())

    def _provenance(self) -> dict[str, Any]:
        made = {"criterion": name_of(self.criterion), "pick_at": self.pick_at, "seed": self.seed}
        return {**provenance_of(self.scope, None, self.keep_at_least), **made}

    @property
    def _picked(self) -> bool:
        return bool(self.plan.keep)

    def _level(self) -> float:
        """λ of what it grows for."""
        return min(self.delta * (self.step // self.every), self.ceiling)

    def _growth(self, name: str, device: torch.device) -> Tensor:
        """λ of each unit of a group, (units left,)."""
        group = self.groups[name]
        left = self.groups.left(group)
        pushed = ~self.plan.left[group.leaf][left] if self._picked else torch.ones(int(left.sum()))
        return pushed.to(device) * self._level()

    @torch.no_grad()
    def _add(self, model: nn.Module, optimizer: Optimizer) -> None:
        check_trains(optimizer, model, "GReg")
        weights = weights_of(model)
        states = trained(optimizer, {name: weights[name] for name in self._units.states})
        device = next(iter(weights.values())).device
        factors = {name: self._growth(name, device) for name in self._units.sizes}
        spread = self._units.spread(weights, factors, states)
        add_gradients(optimizer, weights, {name: wide(weights[name]) * f for name, f in spread.items()})
