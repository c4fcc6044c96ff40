"""Which slices of whole axes stay: channels, heads and their like, where the cost of one depends on all others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, lcm
from typing import TypeAlias

import torch
from torch import Tensor

from prunus.allocate.limit import limit_of, unreachable
from prunus.allocate.shares import Shares, largest
from prunus.cost import Cost, cost_of
from prunus.graph.axes import Atom
from prunus.graph.groups import Group, Groups, scattered
from prunus.graph.width import counts
from prunus.patterns import Channel
from prunus.types import Budget

Choose: TypeAlias = Callable[[int], dict[Atom, int]]
"""The i-th choice: leaf -> units that stay."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """Groups that keep equally many units: one group, or several that are tied.

    `ranked` holds the scores of the groups' best, second best, ... units, added up over the groups; (units left,).
    Counts are multiples of `step`, or all; at least `least`. `traced` is the size in the traced model.
    """

    groups: tuple[Group, ...]
    ranked: Tensor
    traced: int
    step: int
    least: int

    @property
    def left(self) -> int:
        return self.ranked.numel()

    def count(self, wanted: float) -> int:
        """The allowed count next to, and not below, a wanted one."""
        count = max(self.least, ceil(wanted))
        return min(self.left, -(-count // self.step) * self.step)

    def at_share(self, share: float) -> int:
        return self.count(floor(share * self.traced + 1e-9))


def keep_slices(
    groups: Groups,
    scores: Mapping[str, Tensor],
    budget: Budget,
    scope: str,
    shares: Shares | None,
    keep_at_least: float,
) -> dict[str, Tensor]:
    """Group name -> the units of the traced model that stay."""
    bundles = _bundles(groups, scores, keep_at_least)
    if shares is None:
        kept = _largest(groups, budget, *_choices(bundles, scope, budget))
    else:
        kept = _densest(groups, budget, bundles, shares)
    keep = {g.name: _best(scores[g.name], kept[g.leaf]) for b in bundles for g in b.groups}
    return scattered(groups, keep)


def keep_counts(groups: Groups, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The units that are alive, and as many of the others as ties and multiples ask for."""
    keep: dict[str, Tensor] = {}
    for bundle in _bundles(groups, {name: units.float() for name, units in alive.items()}, 0.0):
        count = bundle.count(max(int(alive[g.name].sum()) for g in bundle.groups))
        keep |= {g.name: _best(alive[g.name].float(), count) for g in bundle.groups}
    return keep


def _bundles(groups: Groups, scores: Mapping[str, Tensor], keep_at_least: float) -> list[Bundle]:
    tied = {name for tie in groups.ties for name in tie}
    sets = [*groups.ties, *((g.name,) for g in groups if g.name not in tied)]
    return [_bundle(groups, [groups[name] for name in names], scores, keep_at_least) for names in sets]


def _bundle(groups: Groups, tied: Sequence[Group], scores: Mapping[str, Tensor], keep_at_least: float) -> Bundle:
    ranked = torch.stack([scores[g.name].double().sort(descending=True).values for g in tied]).sum(0)
    size = tied[0].size
    assert isinstance(groups.pattern, Channel)
    step = lcm(*(groups.pattern.step(g.width if g.kind in ("head", "kv_head", "conv_group") else 1) for g in tied))
    return Bundle(tuple(tied), ranked, size, step, max(*(g.least for g in tied), 1, ceil(keep_at_least * size - 1e-9)))


def _choices(bundles: Sequence[Bundle], scope: str, budget: Budget) -> tuple[int, Choose]:
    """How many choices of counts there are, and the i-th of them, from the fewest units to the most."""
    if scope == "layer":
        shares = sorted({k / b.traced for b in bundles for k in range(b.traced + 1)})
        if budget.metric == "units" and budget.relative:
            shares = [s for s in shares if s <= budget.at_most + 1e-9]
        return len(shares), lambda i: {g.leaf: b.at_share(shares[i]) for b in bundles for g in b.groups}
    owners = _ranked(bundles)

    def best(i: int) -> dict[Atom, int]:
        wanted = torch.bincount(owners[:i], minlength=len(bundles)).tolist()
        return {g.leaf: b.count(n) for b, n in zip(bundles, wanted, strict=True) for g in b.groups}

    return owners.numel() + 1, best


def _ranked(bundles: Sequence[Bundle]) -> Tensor:
    """The bundle each unit belongs to, best units first; equal scores take turns, so that no bundle loses them all."""
    owners = torch.cat([torch.full((b.left,), i) for i, b in enumerate(bundles)])
    turns = torch.cat([torch.arange(b.left) / b.left for b in bundles]).sort(stable=True).indices
    order = torch.cat([b.ranked for b in bundles])[turns].sort(descending=True, stable=True).indices
    return owners[turns][order]


def _largest(groups: Groups, budget: Budget, choices: int, choose: Choose) -> dict[Atom, int]:
    """The last choice that the budget allows; costs never fall along the choices."""
    cost, before, limit = _costs(groups, budget)
    place = bisect_left(range(choices), True, key=lambda i: cost(choose(i)) > limit)
    if place == 0:
        raise unreachable(budget, cost(choose(0)), before, None)
    return choose(place - 1)


def _densest(groups: Groups, budget: Budget, bundles: Sequence[Bundle], shares: Shares) -> dict[Atom, int]:
    """The largest overall density that the budget allows; of relative units also before fractions are dropped."""
    cost, before, limit = _costs(groups, budget)
    of_units = budget.metric == "units" and budget.relative

    def choose(density: float) -> dict[Atom, int]:
        each = shares(density)
        mean = [sum(each[g.name] for g in b.groups) / len(b.groups) for b in bundles]
        wanted = [
            floor((share + 1e-9) * b.traced) for b, share in zip(bundles, mean, strict=True)
        ]  # 1/2 of all at once
        return {g.leaf: b.count(n) for b, n in zip(bundles, wanted, strict=True) for g in b.groups}

    def fits(density: float) -> bool:
        each = shares(density)
        if of_units and sum(min(b.left, each[g.name] * g.size) for b in bundles for g in b.groups) > limit:
            return False
        return cost(choose(density)) <= limit

    if cost(choose(0.0)) > limit:
        raise unreachable(budget, cost(choose(0.0)), before, shares)
    return choose(largest(fits, budget.at_most if of_units else 0.5))


def _costs(groups: Groups, budget: Budget) -> tuple[Cost, float, float]:
    """(cost of the whole model at a choice, of the model as it was, the most that is allowed)."""
    whole, alive = cost_of(budget.metric, groups), counts(groups.alive)
    before = whole({})
    return lambda kept: whole({**alive, **kept}), before, limit_of(budget, before) * (1 + 1e-12)


def _best(scores: Tensor, count: int) -> Tensor:
    """The `count` best units; ties go to the first."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.sort(descending=True, stable=True).indices[:count].cpu()] = True
    return mask
