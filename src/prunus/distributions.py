"""Quantiles and tail probabilities of the normal and of Student's distribution, without scipy."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from prunus.errors import MeasureError


def normal_quantile(confidence: float) -> float:
    """z such that a normal value lies within -+ z with this probability."""
    half = torch.tensor((1 + _checked(confidence)) / 2, dtype=torch.float64)
    return float(torch.special.ndtri(half))


def student_quantile(confidence: float, df: int) -> float:
    """t such that a Student value lies within -+ t with this probability."""
    alpha, high = 1 - _checked(confidence), 2.0
    while student_p(high, 1.0, df) > alpha:
        high *= 2
    return bisect(lambda t: student_p(t, 1.0, df) - alpha, 0.0, high)


def student_p(estimate: float, error: float, df: int) -> float:
    """The probability that a Student value is as far out as estimate/error, either way."""
    if estimate == 0:
        return 1.0
    # x = df/(df + t^2) and 1 - x, each without cancellation, also for an error of zero.
    whole = math.hypot(math.sqrt(df) * error, estimate)
    x, rest = (math.sqrt(df) * error / whole) ** 2, (estimate / whole) ** 2
    if x < (df + 2) / (df + 5):  # where the fraction converges fast
        return _incomplete_beta(df / 2, 0.5, x, rest)
    return 1 - _incomplete_beta(0.5, df / 2, rest, x)


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise MeasureError(f"confidence={confidence} is outside (0, 1); 0.95 asks for a 95 % interval.")
    return confidence


def bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero between `low` and `high`."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b) with rest = 1 - x, by the continued fraction 1/(1 + d1/(1 + d2/(1 + ...))), DLMF 8.17.22."""
    if x == 0:
        return 0.0
    fraction = up = 1e-30
    down, term = 0.0, 1.0
    for j in range(1, 10_000):  # modified Lentz, Thompson and Barnett 1986
        down, up = 1 / (1 + term * down), 1 + term / up
        fraction *= up * down
        if abs(up * down - 1) < 1e-15:
            break
        term = _beta_term(a, b, x, j)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    return math.exp(log_front) * fraction / a


def _beta_term(a: float, b: float, x: float, j: int) -> float:
    m = j // 2
    if j % 2:
        return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
    return m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
