"""`allocate`: how many units go and where, so that a budget is met."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, lcm
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from prunus.cost import cost_of, predict
from prunus.errors import BudgetError, CriterionError, GroupError
from prunus.graph.axes import Atom
from prunus.graph.groups import Group, Groups, scattered
from prunus.graph.width import counts
from prunus.plan import Plan
from prunus.types import Budget

Scope: TypeAlias = Literal["global", "layer"]
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


def allocate(
    groups: Groups,
    scores: Mapping[str, Tensor],
    budget: Budget | None = None,
    *,
    scope: Scope = "global",
    keep_at_least: float = 0.0,
) -> Plan:
    """Choose the units that stay, the largest choice that the budget allows.

    `scope="global"` ranks all units together; `"layer"` keeps the same share of every group.
    `keep_at_least` is the share of each group that stays in any case (one unit at least). Budgets are relative to
    the traced model, also after `groups.at(plan)`. Tied groups keep equally many units.

    Raises `BudgetError` when the budget cannot be reached (saying how near it came), `GroupError` when there is
    nothing to prune, `CriterionError` for scores that are missing, misshaped or not finite.
    """
    if scope not in get_args(Scope):
        raise BudgetError(f"Unknown scope {scope!r}; expected one of {', '.join(get_args(Scope))}.")
    if budget is None:
        raise BudgetError('A structured plan needs a budget, such as prunus.Budget("macs", at_most=0.5).')
    if not 0 <= keep_at_least <= 1:
        raise BudgetError(f"keep_at_least={keep_at_least} is a share of each group; expected 0 to 1.")
    if not len(groups):
        raise GroupError("There is no group left to prune; `only` and `skip` have left out every one.")
    bundles = _bundles(groups, _checked(groups, scores), keep_at_least)
    kept = _largest(groups, budget, *_choices(bundles, scope, budget))
    keep = {g.name: _best(scores[g.name], kept[g.leaf]) for b in bundles for g in b.groups}
    provenance = {"scope": scope, "keep_at_least": keep_at_least, "torch": torch.__version__}
    plan = Plan(groups, scattered(groups, keep), budget, {}, provenance)
    return replace(plan, costs=predict(groups.graph, plan.left))


def _checked(groups: Groups, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for group in groups:
        left = int(groups.left(group).sum())
        given = scores.get(group.name)
        if given is None or tuple(given.shape) != (left,):
            found = "missing" if given is None else f"of shape {tuple(given.shape)}"
            raise CriterionError(
                f"The scores of group {group.name!r} are {found}; expected shape ({left},), one value a unit."
            )
        if not bool(torch.isfinite(given).all()):
            raise CriterionError(
                f"The scores of group {group.name!r} are not all finite; check the criterion and its data."
            )
    return scores


def _bundles(groups: Groups, scores: Mapping[str, Tensor], keep_at_least: float) -> list[Bundle]:
    tied = {name for tie in groups.ties for name in tie}
    sets = [*groups.ties, *((g.name,) for g in groups if g.name not in tied)]
    return [_bundle(groups, [groups[name] for name in names], scores, keep_at_least) for names in sets]


def _bundle(groups: Groups, tied: Sequence[Group], scores: Mapping[str, Tensor], keep_at_least: float) -> Bundle:
    ranked = torch.stack([scores[g.name].double().sort(descending=True).values for g in tied]).sum(0)
    size = tied[0].size
    step = lcm(*(groups.pattern.step(g.width if g.kind in ("head", "kv_head", "conv_group") else 1) for g in tied))
    return Bundle(tuple(tied), ranked, size, step, max(1, ceil(keep_at_least * size - 1e-9)))


def _choices(bundles: Sequence[Bundle], scope: Scope, budget: Budget) -> tuple[int, Choose]:
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
    whole, alive = cost_of(budget.metric, groups), counts(groups.alive)
    before = whole({})
    limit = budget.at_most * before if budget.relative else budget.at_most

    def cost(i: int) -> float:
        return whole({**alive, **choose(i)})

    place = bisect_left(range(choices), True, key=lambda i: cost(i) > limit * (1 + 1e-12))
    if place == 0:
        raise _unreachable(budget, cost(0), before)
    return choose(place - 1)


def _unreachable(budget: Budget, nearest: float, before: float) -> BudgetError:
    wanted = f"at most {budget.at_most:g}" + ("" if budget.relative else f" {budget.metric}")
    possible = f"{ceil(1000 * nearest / before) / 1000:g}" if budget.relative else f"{nearest:.0f}"
    return BudgetError(
        f"Budget({budget.metric!r}, {wanted}) cannot be reached: with the fewest units these groups allow, "
        f"{nearest:,.0f} of {before:,.0f} {budget.metric} are left ({nearest / before:.3f}). Ask for at most "
        f"{possible}, lower keep_at_least or round_to, or let more groups be pruned."
    )


def _best(scores: Tensor, count: int) -> Tensor:
    """The `count` best units; ties go to the first."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.sort(descending=True, stable=True).indices[:count].cpu()] = True
    return mask
