"""When how much goes: each schedule maps progress in [0, 1] to the share of the target reached, from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

Schedule: TypeAlias = Callable[[float], float]


def constant(progress: float) -> float:  # noqa: ARG001
    """Everything at once, whatever the progress: one shot.

    >>> constant(0.0)
    1.0
    """
    return 1.0


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


def cosine(progress: float) -> float:
    """(1 - cos(πp)) / 2: gently at both ends. Source: the shape of Loshchilov & Hutter 2017, equation 5, rising.

    >>> round(cosine(0.5), 6)
    0.5
    """
    return (1 - math.cos(math.pi * progress)) / 2


def one_cycle(progress: float) -> float:
    """(1 + e^(-a + b)) / (1 + e^(-ap + b)) with a = 14 and b = 5: half at p = 5/14, then ever less.

    It starts at 0.0067, not quite at 0. Source: Hubens et al. 2021, "One-Cycle Pruning", arXiv:2107.02086.

    >>> round(one_cycle(5 / 14), 4)
    0.5001
    """
    return (1 + math.exp(-14 + 5)) / (1 + math.exp(-14 * progress + 5))
