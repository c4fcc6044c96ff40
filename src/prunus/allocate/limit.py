"""What a budget allows in numbers, and the error when it cannot be reached."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from prunus.allocate.shares import Shares
from prunus.cost import whole
from prunus.errors import BudgetError
from prunus.fingerprint import name_of
from prunus.graph.groups import Groups
from prunus.types import Budget


def limit_of(budget: Budget, before: float) -> float:
    """The most that may be left, of a model that costs `before`."""
    return budget.at_most * before if budget.relative else budget.at_most


def partway(budget: Budget, groups: Groups, reached: float) -> Budget:
    """The budget of which a share is reached: so far on the way from the whole model to the target."""
    reached = min(max(reached, 0.0), 1.0)
    if reached == 1.0:
        return budget
    start = 1.0 if budget.relative else whole(budget.metric, groups)
    return replace(budget, at_most=start - (start - min(budget.at_most, start)) * reached)


def unreachable(budget: Budget, nearest: float, before: float, shares: Shares | None) -> BudgetError:
    wanted = f"at most {budget.at_most:g}" + ("" if budget.relative else f" {budget.metric}")
    possible = f"{ceil(1000 * nearest / before) / 1000:g}" if budget.relative else f"{nearest:.0f}"
    why, mend = "with the fewest units these groups allow", "lower keep_at_least or round_to"
    if shares is not None and not shares.falls:
        asked = f"densities={name_of(shares.densities)}"
        why, mend = f"with what {asked} asks for at an overall density of 0", f"let the shares of {asked} fall to 0"
    return BudgetError(
        f"Budget({budget.metric!r}, {wanted}) cannot be reached: {why}, {nearest:,.0f} of {before:,.0f} "
        f"{budget.metric} are left ({nearest / before:.3f}). Ask for at most {possible}, {mend}, or let more groups be "
        "pruned."
    )
