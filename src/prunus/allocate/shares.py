"""What a function of densities asks for, and the largest overall density that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import TypeAlias

from torch import Tensor

from prunus.densities import Densities
from prunus.errors import BudgetError
from prunus.fingerprint import name_of
from prunus.graph.groups import Groups

Shares: TypeAlias = Callable[[float], Mapping[str, float]]
"""Overall density -> group name -> share of its units that stays, in [0, 1]."""
_HALVINGS = 40


def shares_of(densities: Densities | None, groups: Groups, scores: Mapping[str, Tensor]) -> Shares | None:
    """The densities of these groups, checked and clipped at each call."""
    if densities is None:
        return None

    def shares(density: float) -> Mapping[str, float]:
        found = densities(groups, scores, density)
        return {group.name: _checked(densities, group.name, found.get(group.name)) for group in groups}

    return shares


def _checked(densities: Densities, name: str, share: float | None) -> float:
    if share is None or not isfinite(share) or share < 0:
        raise BudgetError(
            f"densities={name_of(densities)} gave {share} for group {name!r}; expected the share of its units that "
            "stays, 0 to 1, for every group."
        )
    return min(1.0, share)


def largest(fits: Callable[[float], bool], guess: float) -> float:
    """The largest density in [0, 1] that fits; the guess itself where nothing above it does, 0 where nothing does."""
    if fits(1.0):
        return 1.0
    low, high = (guess, 1.0) if fits(guess) else (0.0, guess)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
