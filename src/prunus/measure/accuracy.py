"""How good is a model, and how sure is that?"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor, nn

from prunus.errors import MeasureError
from prunus.measure.untouched import same_random
from prunus.statistics import accuracy_interval
from prunus.types import Evaluate


def accuracy(model: nn.Module, evaluate: Evaluate) -> tuple[float, tuple[float, float] | None, int]:
    """Mean score, its 95 % interval and the number of samples n, from `evaluate(model)`: scores (n,) or one figure.

    A bare figure has no interval, and counts as n = 1. Every model is evaluated from the same random state.

    Raises MeasureError for other shapes, for no samples and for scores that are not finite.

    >>> accuracy(nn.Identity(), lambda model: torch.tensor([1.0, 1.0, 0.0, 1.0]))[::2]
    (0.75, 4)
    >>> accuracy(nn.Identity(), lambda model: 0.75)
    (0.75, None, 1)
    """
    with torch.no_grad(), same_random(model):
        scores = evaluate(model)
    if isinstance(scores, Tensor) and scores.ndim:
        interval = accuracy_interval(scores)  # before the mean, as it checks the scores
        return float(scores.double().mean()), interval, len(scores)
    return _figure(scores), None, 1


def _figure(scores: object) -> float:
    if not isinstance(scores, (Tensor, Real)):
        raise MeasureError(
            f"evaluate returned a {type(scores).__name__}; expected one score a sample, a tensor of shape (n,), from "
            "which intervals come, or a bare float."
        )
    value = float(scores)
    if not math.isfinite(value):
        raise MeasureError(f"evaluate returned {value}; expected a finite figure.")
    return value
