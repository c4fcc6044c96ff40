"""`Push`: a term of the loss whose gradient, in closed form, is added to that of the loss before each step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from prunus.errors import PlanError
from prunus.graph.groups import Groups
from prunus.graph.shards import check_whole
from prunus.regularize.ride import Ride, add_gradients, ride, trained, weights_of
from prunus.regularize.units import fitting
from prunus.schedules import Schedule
from prunus.steps import check_trains


class Term(Protocol):
    """A penalty of the weights at strength 1, and its gradient by closed form, over the same names."""

    @property
    def states(self) -> tuple[str, ...]:
        """The parameters that it is about."""
        ...

    def value(self, weights: Mapping[str, Tensor]) -> Tensor: ...
    def gradient(self, weights: Mapping[str, Tensor], states: Collection[str]) -> dict[str, Tensor]: ...


class Push:
    """`strength` times a term, which grows from nothing over the first `steps` optimizer steps as `schedule` says.

    Made by `l1`, `bn_scale` and `group_lasso`. What it adds is a function of the weights alone: no backward pass, the
    same on every rank of a data-parallel run, once a step however many gradients were accumulated, and after clipping,
    which happens before the step. An optimizer that divides gradients by their size, as Adam does, divides these too.
    """

    def __init__(
        self, groups: Groups, term: Term, *, who: str, strength: float, steps: int, schedule: Schedule
    ) -> None:
        check_strength(who, strength, steps)
        self.groups, self.term, self.who = groups, term, who
        self.strength, self.steps, self.schedule = strength, steps, schedule
        self.step = 0
        self._ride: Ride | None = None

    def penalty(self, model: nn.Module) -> Tensor:
        """The value of the term at the strength of the coming step: a scalar that can be printed or differentiated."""
        return self._now() * self.term.value(weights_of(fitting(model, self.groups)))

    def attach(self, model: nn.Module, *optimizers: Optimizer) -> Ride:
        """Add the gradient of the term before each step of these optimizers; the steps of the first are counted.

        Works with closures, compiled and wrapped models, and loops of any framework. An earlier ride ends.

        Raises `PlanError` without an optimizer, when the model does not have the shapes of the groups, and where its
        weights are in pieces (FSDP2), unless the term is about single weights that no plan has touched.
        """
        inner = fitting(model, self.groups)
        if not self.groups.laid or self.groups.alive:
            check_whole(inner, self.who)
        if self._ride is not None:
            self._ride.detach()
        self._ride = ride(optimizers, self.who, lambda optimizer: self._add(inner, optimizer), self._count)
        return self._ride

    def state_dict(self) -> dict[str, Any]:
        """Where this stands, for checkpoints: {"step": int}."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, before or after `attach`."""
        self.step = int(state["step"])

    def _now(self) -> float:
        return self.strength * progressed(self.schedule, self.step, self.steps)

    def _count(self) -> None:
        self.step += 1

    @torch.no_grad()
    def _add(self, model: nn.Module, optimizer: Optimizer) -> None:
        check_trains(optimizer, model, self.who)
        weights = weights_of(model)
        states = trained(optimizer, {name: weights[name] for name in self.term.states})
        gradient = self.term.gradient(weights, states)
        add_gradients(optimizer, weights, {name: part * self._now() for name, part in gradient.items()})


def progressed(schedule: Schedule, step: int, steps: int) -> float:
    """The share of the strength in step number `step`, from 0; whole from the last of the `steps` on."""
    return schedule((step + 1) / steps) if step + 1 < steps else 1.0


def check_strength(who: str, strength: float, steps: int) -> None:
    if not strength >= 0 or steps < 1:
        raise PlanError(
            f"{who}(strength={strength}, steps={steps}): expected a strength of 0 or more, and at least 1 step; steps "
            "count optimizer steps."
        )
