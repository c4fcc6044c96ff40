"""`allocate`: the plan that a budget allows, for slices of whole axes or for units within tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from prunus.allocate.shares import Shares
from prunus.allocate.slices import keep_slices
from prunus.allocate.within import keep_cells, keep_within
from prunus.cost import costs_of
from prunus.densities import Densities
from prunus.errors import BudgetError, CriterionError, GroupError
from prunus.fingerprint import name_of
from prunus.graph.groups import Groups
from prunus.patterns import NofM
from prunus.plan import Plan
from prunus.types import Budget

Scope: TypeAlias = Literal["global", "layer", "row"]


def allocate(
    groups: Groups,
    scores: Mapping[str, Tensor],
    budget: Budget | None = None,
    *,
    scope: Scope = "global",
    densities: Densities | None = None,
    keep_at_least: float = 0.0,
) -> Plan:
    """Choose the units that stay, the largest choice that the budget allows.

    `scope="global"` ranks all units together; `"layer"` keeps the same share of every group; `"row"`, for patterns
    within tensors, the same share of every row of blocks too, to within one unit. `densities`, such as
    `prunus.densities.erk`, says instead how much of each group stays, at the largest overall density that the budget
    allows; `"global"` is then as `"layer"`, and `"row"` spreads a group's share over its rows. `NofM` fixes its own
    density: it takes no budget and no densities, and the scope is its cell. `keep_at_least` is the share of each group
    that stays in any case (one unit at least). Budgets are relative to the model as it was, also after
    `groups.at(plan)`. Tied groups keep equally many units, the mean of their densities.

    Raises `BudgetError` when the budget cannot be reached (saying how near it came), `GroupError` when there is
    nothing to prune, `CriterionError` for scores that are missing, misshaped or not finite.
    """
    _check_door(groups, budget, scope, keep_at_least)
    _check_densities(groups, densities)
    _check_scores(groups, scores)
    keep = _kept(groups, scores, budget, scope, densities, keep_at_least)
    plan = Plan(groups, keep, budget, {}, provenance_of(scope, densities, keep_at_least))
    return replace(plan, costs=costs_of(groups, plan.left))


def provenance_of(scope: Scope, densities: Densities | None, keep_at_least: float) -> dict[str, Any]:
    """What a plan remembers of how it was allocated."""
    made = {"scope": scope, "keep_at_least": keep_at_least, "torch": torch.__version__}
    return made if densities is None else {**made, "densities": name_of(densities)}


def _kept(
    groups: Groups,
    scores: Mapping[str, Tensor],
    budget: Budget | None,
    scope: Scope,
    densities: Densities | None,
    keep_at_least: float,
) -> dict[str, Tensor]:
    if isinstance(groups.pattern, NofM):
        return keep_cells(groups, scores, groups.pattern)
    assert budget is not None
    within = keep_within if groups.laid else keep_slices
    shares = None if densities is None else Shares(densities, groups, scores)
    return within(groups, scores, budget, scope, shares, keep_at_least)


def _check_door(groups: Groups, budget: Budget | None, scope: Scope, keep_at_least: float) -> None:
    if scope not in get_args(Scope):
        raise BudgetError(f"Unknown scope {scope!r}; expected one of {', '.join(get_args(Scope))}.")
    if scope == "row" and not groups.laid:
        raise BudgetError('scope="row" is for Element and Block; a channel has no rows. Use "layer" or "global".')
    pattern = groups.pattern
    if isinstance(pattern, NofM):
        if budget is not None:
            raise BudgetError(f"{pattern} fixes its own density, {pattern.n / pattern.m:g}; leave the budget out.")
    elif budget is None:
        raise BudgetError(f'{pattern} needs a budget, such as prunus.Budget("units", at_most=0.5).')
    if not 0 <= keep_at_least <= 1:
        raise BudgetError(f"keep_at_least={keep_at_least} is a share of each group; expected 0 to 1.")
    if not len(groups):
        raise GroupError("There is no group left to prune; `only` and `skip` have left out every one.")


def _check_densities(groups: Groups, densities: Densities | None) -> None:
    if densities is None:
        return
    if isinstance(groups.pattern, NofM):
        raise BudgetError(f"{groups.pattern} fixes its own density in every layer; leave densities out.")
    if not callable(densities):
        raise BudgetError(f"densities={densities!r}; expected a function, such as prunus.densities.erk.")


def _check_scores(groups: Groups, scores: Mapping[str, Tensor]) -> None:
    for group in groups:
        left = int(groups.left(group).sum()) if group.leaf in groups.alive else group.size
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
