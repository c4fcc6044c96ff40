"""How each run goes: a trained network and its images in; the networks to be judged, by name, out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import prunus
from compared.fashion import Images
from compared.net import loss, made, train
from compared.runs import DENSE_STEPS, LONG, PUSH, RECOVERY, ROWS, Run
from prunus import Budget, Element, criteria

RECOVERY_RATE, SAMPLES, EARLY = 0.05, 512, 100
CALIBRATION = 32
"""Batches of 16, from the training images, for criteria that look at data."""


@dataclass(frozen=True)
class Given:
    """What a way has: its run, the dense network of its seed, the images to train on."""

    run: Run
    dense: nn.Module
    images: Images

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def budget(self) -> Budget:
        return Budget("units", at_most=self.run.kept)

    @property
    def calibration(self) -> list[Any]:
        return Images(self.images.images[:SAMPLES], self.images.labels[:SAMPLES]).batches(SAMPLES // CALIBRATION)

    def recovered(self, model: nn.Module, plan: prunus.Plan | None, steps: int = RECOVERY) -> nn.Module:
        hold = None if plan is None else partial(_held, plan)
        return train(model, self.images, steps, seed=self.seed + 100, rate=RECOVERY_RATE, ride=hold)


Judged = Mapping[str, nn.Module]
"""`cut`: before any recovery; `recovered`: after it."""


def dense(given: Given) -> Judged:
    return {"recovered": given.recovered(copy.deepcopy(given.dense), None), "cut": given.dense}


def dense_longer(given: Given) -> Judged:
    return {"recovered": given.recovered(copy.deepcopy(given.dense), None, LONG)}


def dense_narrow(given: Given) -> Judged:
    """A network of half the widths, a quarter of the work, trained as long as the others with their recovery."""
    narrow = train(made(given.seed, 8), given.images, DENSE_STEPS, seed=given.seed)
    return {"cut": copy.deepcopy(narrow), "recovered": given.recovered(narrow, None)}


def weights(given: Given) -> Judged:
    scope = "row" if given.run.what in ROWS else "layer" if given.run.what == "random" else "global"
    return _shot(given, scope=scope)


def layer_by_layer(given: Given) -> Judged:
    return _shot(given, scope="layer")


def densities(given: Given) -> Judged:
    what = given.run.what
    if what == "lamp":
        return _shot(given, scope="global")
    groups = _cells(given.dense, given.images)
    name = "wanda" if what == "owl" else "magnitude"
    scores = prunus.score(given.dense, groups, getattr(criteria, name), data=given.calibration, loss=loss)
    return _held_to(given, prunus.allocate(groups, scores, given.budget, densities=getattr(prunus.densities, what)))


def _shot(given: Given, scope: Any) -> Judged:
    groups = _cells(given.dense, given.images)
    scores = prunus.score(given.dense, groups, _criterion(given), data=given.calibration, loss=loss, seed=given.seed)
    return _held_to(given, prunus.allocate(groups, scores, given.budget, scope=scope))


def _held_to(given: Given, plan: prunus.Plan) -> Judged:
    zeros = copy.deepcopy(given.dense)
    prunus.mask(zeros, plan).detach()
    return {"cut": copy.deepcopy(zeros), "recovered": given.recovered(zeros, plan)}


def channels(given: Given) -> Judged:
    """A quarter of the work, the same share of every group, so that criteria of any scale compare."""
    small = _narrowed(given, given.dense, _criterion(given), "layer")
    return {"cut": small, "recovered": given.recovered(copy.deepcopy(small), None)}


def _narrowed(given: Given, model: nn.Module, criterion: Any, scope: Any) -> nn.Module:
    groups = prunus.group(prunus.trace(model, given.images.images[:2]))
    scores = prunus.score(model, groups, criterion, data=given.calibration, loss=loss, seed=given.seed)
    quarter = Budget("macs", at_most=given.run.kept)
    plan = prunus.allocate(groups, scores, quarter, scope=scope, keep_at_least=0.1)
    return prunus.shrink(model, plan)


def before_training(given: Given) -> Judged:
    """An untrained network at one weight of two hundred, then trained; `cut` is that network before training."""
    net = made(given.seed)
    groups = _cells(net, given.images)
    rounds = 100 if given.run.what == "synflow" else 1
    plan = prunus.plan_iteratively(
        net, groups, _criterion(given), given.budget, rounds=rounds, data=given.calibration, loss=loss
    )
    prunus.mask(net, plan).detach()
    begun = copy.deepcopy(net)
    trained = train(net, given.images, DENSE_STEPS, seed=given.seed, ride=partial(_held, plan))
    return {"cut": begun, "recovered": trained}


def while_training(given: Given) -> Judged:
    """Each is trained three epochs more: pruned at its start, or in the course of its first 70 percent."""
    groups = _cells(given.dense, given.images)
    if given.run.what == "one shot":
        plan = prunus.allocate(groups, prunus.score(given.dense, groups, criteria.magnitude), given.budget)
        return {"recovered": given.recovered(copy.deepcopy(given.dense), plan, LONG)}
    criterion = criteria.lamp if given.run.what == "gradual, lamp" else criteria.magnitude
    gradual = prunus.Gradual(groups, criterion, given.budget, steps=int(0.7 * LONG), every=20)
    net = copy.deepcopy(given.dense)
    train(net, given.images, LONG, seed=given.seed + 100, rate=RECOVERY_RATE, ride=gradual.attach)
    return {"recovered": net}


def from_scratch(given: Given) -> Judged:
    what, net = given.run.what, made(given.seed)
    groups = _cells(net, given.images)
    if "ticket" in what:
        return _ticket(given, net, groups)
    regrow = prunus.Regrow(
        groups,
        given.budget,
        steps=DENSE_STEPS,
        every=DENSE_STEPS if what == "static" else 50,
        grow="gradient" if what == "rigl" else "random",
        seed=given.seed,
    )
    return {"recovered": train(net, given.images, DENSE_STEPS, seed=given.seed, ride=regrow.attach)}


def _ticket(given: Given, net: nn.Module, groups: prunus.Groups) -> Judged:
    def part(model: nn.Module, begin: int, end: int) -> None:
        train(model, given.images, DENSE_STEPS, seed=given.seed, begin=begin, end=end)

    if given.run.what == "ticket":
        found = prunus.lottery(net, groups, part, given.budget, steps=DENSE_STEPS, at=EARLY, rounds=3)
        return {"recovered": found.model}
    part(net, 0, EARLY)
    scores = prunus.score(net, groups, criteria.random, seed=given.seed)
    plan = prunus.allocate(groups, scores, given.budget, densities=prunus.densities.erk)
    with prunus.mask(net, plan):
        part(net, EARLY, DENSE_STEPS)
    return {"recovered": net}


def pushed(given: Given) -> Judged:
    """An epoch more with and without group lasso, then cut to a quarter of the work, without recovery."""
    net = copy.deepcopy(given.dense)
    ride = None
    if given.run.what != "plain":
        groups = prunus.group(prunus.trace(net, given.images.images[:2]))
        strength = float(given.run.what.removeprefix("group lasso "))
        ride = prunus.regularize.group_lasso(groups, strength=strength, steps=PUSH // 4).attach
    train(net, given.images, PUSH, seed=given.seed + 100, rate=RECOVERY_RATE, ride=ride)
    scopes = {"cut": "global", "by layer": "layer"}
    return {
        "whole": net,
        **{name: _narrowed(given, net, criteria.magnitude_l2, scope) for name, scope in scopes.items()},
    }


def _cells(model: nn.Module, images: Images) -> prunus.Groups:
    return prunus.group(prunus.trace(model, images.images[:2]), pattern=Element())


def _criterion(given: Given) -> Any:
    """The criterion by its name; movement has seen some steps of training, of a copy."""
    if given.run.what != "movement":
        return getattr(criteria, given.run.what)
    movement, net = criteria.Movement(), copy.deepcopy(given.dense)
    train(net, given.images, RECOVERY, seed=given.seed + 200, rate=0.01, ride=movement.attach)
    return movement


def _held(plan: prunus.Plan, model: nn.Module, optimizer: torch.optim.Optimizer) -> AbstractContextManager[Any]:
    return prunus.mask(model, plan, optimizer)


WAYS: Mapping[str, Callable[[Given], Judged]] = {
    "dense": dense,
    "dense, longer": dense_longer,
    "dense, narrow": dense_narrow,
    "weights": weights,
    "layer by layer": layer_by_layer,
    "densities": densities,
    "channels": channels,
    "before training": before_training,
    "while training": while_training,
    "from scratch": from_scratch,
    "pushed": pushed,
}
