"""When how much goes: each schedule maps progress in [0, 1] to the share of the target reached, from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Schedule: TypeAlias = Callable[[float], float]


def linear(progress: float) -> float:
    """Equal steps.

    >>> linear(0.5)
    0.5
    """
    return progress


def cubic(progress: float) -> float:
    """1 - (1 - p)³: much at first, little at the end. Source: Zhu & Gupta 2017, equation 1.

    >>> cubic(0.5)
    0.875
    """
    return 1 - (1 - progress) ** 3
