"""What a function of densities asks for, and the largest overall density that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import Tensor

from prunus.densities import Densities
from prunus.errors import BudgetError
from prunus.fingerprint import name_of
from prunus.graph.groups import Groups

_HALVINGS = 40


@dataclass(frozen=True, eq=False)
class Shares:
    """The densities of these groups, checked and clipped at each call."""

    densities: Densities
    groups: Groups
    scores: Mapping[str, Tensor]

    def __call__(self, density: float) -> Mapping[str, float]:
        """Overall density -> group name -> share of its units that stays, in [0, 1]."""
        found: Any = self.densities(self.groups, self.scores, density)
        if not isinstance(found, Mapping):
            raise BudgetError(
                f"densities={name_of(self.densities)} returned a {type(found).__name__}; expected a mapping, group "
                "name -> share of its units that stays. Is a `return` missing?"
            )
        asked: Mapping[str, float] = found
        return {group.name: _checked(self.densities, group.name, asked.get(group.name)) for group in self.groups}

    @property
    def falls(self) -> bool:
        """Does it ask for nothing at an overall density of 0?"""
        return not any(self(0.0).values())


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
