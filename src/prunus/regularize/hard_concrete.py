"""The hard-concrete distribution: a gate in [0, 1] that is exactly zero or one with some chance, and can be learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Temperature, and the interval that is clamped to [0, 1]. Source: Louizos et al. 2018, section 4.1."""
_SHIFT = BETA * math.log(-LOW / HIGH)


def drawn(log_alpha: Tensor, noise: Tensor) -> Tensor:
    """Gates for `noise`, uniform in (0, 1). Source: equations 10 and 11."""
    soft = torch.sigmoid((noise.log() - (-noise).log1p() + log_alpha) / BETA)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def settled(log_alpha: Tensor) -> Tensor:
    """The gates to compute with once they are learned, without noise. Source: equation 13.

    >>> settled(torch.tensor([-3.0, 0.0, 3.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return (torch.sigmoid(log_alpha) * (HIGH - LOW) + LOW).clamp(0, 1)


def open_chance(log_alpha: Tensor) -> Tensor:
    """The chance that a gate is not zero. Source: equation 12.

    >>> round(float(open_chance(torch.tensor(0.0))), 4)
    0.8318
    """
    return torch.sigmoid(log_alpha - _SHIFT)


def open_slope(log_alpha: Tensor) -> Tensor:
    """Its derivative: p (1 - p)."""
    chance = open_chance(log_alpha)
    return chance * (1 - chance)


def level_of(share: float) -> float:
    """The log α whose sigmoid is `share`."""
    return math.log(share / (1 - share))
