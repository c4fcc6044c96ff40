"""`Gradual`: zeros that grow along a schedule while the user's own loop trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import floor
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer

from prunus import schedules
from prunus.allocate import Scope, allocate, check_ahead, partway, provenance_of
from prunus.apply.mask import Mask, bits_of, mask, with_bits
from prunus.apply.ranks import agreed, scored
from prunus.criteria import Criterion
from prunus.densities import Densities
from prunus.errors import PlanError
from prunus.fingerprint import name_of
from prunus.graph.groups import Groups, gathered
from prunus.patterns import NofM
from prunus.plan import Plan
from prunus.schedules import Schedule
from prunus.score import Reduce, Scores, score
from prunus.steps import after_step, check_trains
from prunus.types import Batch, Budget, Loss


class Gradual:
    """Prune in the course of training: in `steps` optimizer steps from nothing to `budget`, as `schedule` says.

    Every `every` steps (by default a hundredth of `steps`) the units that are left are scored and the plan goes on;
    what went does not come back. `NofM(n, m)` takes no budget and goes from m of m down to n of m. Works on every
    pattern: plans over channels hold all that a dead unit owns at zero, and `shrink(model, gradual.plan)` then makes
    the model smaller.

    Processes that train one model together (`torch.distributed`) all follow the plan of rank 0. Where the weights are
    in pieces (FSDP2: lay the groups before or after `fully_shard`), rank 0 scores a whole copy of the model.

    `criterion`, `reduce`, `scope`, `densities`, `keep_at_least`, `data`, `loss` are those of `score` and `allocate`.

    Raises what `allocate` raises, `BudgetError` for a budget that cannot be reached at the start and not after hours.

    >>> import torch
    >>> from prunus import Budget, Element, criteria, group
    >>> net = nn.Linear(8, 8)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> gradual = Gradual(group(net, pattern=Element()), criteria.magnitude, Budget("units", at_most=0.25), steps=10)
    >>> with gradual.attach(net, optimizer):
    ...     for _ in range(10):
    ...         net(torch.ones(1, 8)).sum().backward()
    ...         optimizer.step()
    >>> int((net.weight == 0).sum())
    48

    Source: Zhu & Gupta 2017, arXiv:1710.01878.
    """

    def __init__(
        self,
        groups: Groups,
        criterion: Criterion,
        budget: Budget | None = None,
        *,
        steps: int,
        every: int | None = None,
        schedule: Schedule = schedules.cubic,
        scope: Scope = "global",
        densities: Densities | None = None,
        reduce: Reduce = "sum",
        keep_at_least: float = 0.0,
        data: Iterable[Batch] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> None:
        if steps < 1 or (every is not None and every < 1):
            raise PlanError(f"Gradual(steps={steps}, every={every}): expected at least 1; they count optimizer steps.")
        limits: dict[str, Any] = {"scope": scope, "densities": densities, "keep_at_least": keep_at_least}
        check_ahead(groups, criterion, budget, data=data, loss=loss, **limits)
        self.groups, self.criterion, self.budget = groups, criterion, budget
        self.steps, self.every, self.schedule = steps, every or max(1, steps // 100), schedule
        self.scope: Scope = scope
        self.densities = densities
        self.reduce: Reduce = reduce
        self.keep_at_least, self.data, self.loss, self.seed = keep_at_least, data, loss, seed
        self.step = 0
        self.plan = Plan(groups, {}, budget)
        self._masks: Mask | None = None

    def attach(self, model: nn.Module, *optimizers: Optimizer) -> Mask:
        """Count the steps of the first optimizer, and hold the zeros after the steps of each, until `detach()`.

        An earlier hold ends. A loop that in the end puts back its best weights, as `finetune` with `evaluate`, may put
        back denser ones than the plan says: there call `zero()` of the `Mask` that is returned.
        """
        if not optimizers:
            raise PlanError(
                "Gradual.attach(model) was given no optimizer to count the steps of; expected attach(model, optimizer)."
            )
        if self._masks is not None:
            self._masks.detach()
        self._masks = mask(model, self.plan, *optimizers)
        self._masks.until_detached(after_step(optimizers[0], lambda optimizer: self._count(model, optimizer)))
        if self.step == 0:
            self._go_on(model)
        return self._masks

    def state_dict(self) -> dict[str, Any]:
        """Where this stands, for checkpoints: {"step": int, "kept": group name -> packed bits}."""
        return {"step": self.step, "kept": bits_of(self.plan)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Load model, optimizer and this: all before `attach`, or all after it."""
        self.step = int(state["step"])
        last = self.step - self.step % self.every if self.step < self.steps else self.steps
        self.plan = with_bits(Plan(self.groups, {}, self.budget), state["kept"])
        if state["kept"]:
            self.plan = replace(self.plan, budget=self._target(last), provenance=self._provenance())
        if self._masks is not None:
            self._masks.update(self.plan)

    def _count(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.step += 1
        if self.step <= self.steps and (self.step % self.every == 0 or self.step == self.steps):
            check_trains(optimizer, model, "Gradual")
            self._go_on(model)

    def _go_on(self, model: nn.Module) -> None:
        """Prune as far as the schedule says by now."""
        here: Groups | None = self.groups.at(self.plan)
        if isinstance(here.pattern, NofM):
            here = _partway(here, here.pattern, self._reached(self.step))
        if here is None:
            return
        plan = self._allocated(here, self._scores(model, here), self._target(self.step))
        self.plan = replace(self.plan.then(agreed(plan)), provenance=self._provenance())
        assert self._masks is not None
        self._masks.update(self.plan)

    def _reached(self, step: int) -> float:
        return self.schedule(step / self.steps) if step < self.steps else 1.0

    def _target(self, step: int) -> Budget | None:
        return None if self.budget is None else partway(self.budget, self.groups, self._reached(step))

    def _provenance(self) -> dict[str, Any]:
        made = {"criterion": name_of(self.criterion), "schedule": name_of(self.schedule), "steps": self.steps}
        return {**provenance_of(self.scope, self.densities, self.keep_at_least), **made, "seed": self.seed}

    def _allocated(self, here: Groups, scores: Scores, target: Budget | None) -> Plan:
        least = self.keep_at_least
        return allocate(here, scores, target, scope=self.scope, densities=self.densities, keep_at_least=least)

    def _scores(self, model: nn.Module, here: Groups) -> Scores:
        """Of the units that are left now; the model has all that were left at the start."""
        settings: dict[str, Any] = {"data": self.data, "loss": self.loss, "reduce": self.reduce}
        whole = scored(
            model,
            self.groups,
            lambda net: score(net, self.groups, self.criterion, seed=self.seed + self.step, **settings),
        )
        return gathered(self.groups, here, whole)


def _partway(groups: Groups, pattern: NofM, reached: float) -> Groups | None:
    """So far on the way from m of m to n of m; None while that is still all."""
    gone = floor((pattern.m - pattern.n) * min(max(reached, 0.0), 1.0) + 1e-9)
    return replace(groups, pattern=NofM(pattern.m - gone, pattern.m)) if gone else None
