"""Which state of the model was best? The scores so far, and a copy of the weights and buffers behind the best."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.errors import RecoverError
from prunus.types import Evaluate


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Copies of a model's parameters and buffers, in the order of `state`, and their score (higher is better)."""

    score: float
    state: list[Tensor]


def checkpoint(model: nn.Module, evaluate: Evaluate | None) -> Checkpoint | None:
    """Score and copy the present state; None when nothing can score it.

    Raises RecoverError when the mean score is not finite.
    """
    return None if evaluate is None else Checkpoint(_score(model, evaluate), [t.clone() for t in state(model)])


def better(best: Checkpoint | None, model: nn.Module, evaluate: Evaluate | None) -> Checkpoint | None:
    """Return the better of the checkpoint and the present state; the present one if they are equal."""
    if best is None or evaluate is None:
        return best
    score = _score(model, evaluate)
    return best if score < best.score else Checkpoint(score, [t.clone() for t in state(model)])


def _score(model: nn.Module, evaluate: Evaluate) -> float:
    model.eval()
    with torch.no_grad():
        value = evaluate(model)
    score = float(value.double().mean() if isinstance(value, Tensor) else value)
    if not math.isfinite(score):
        raise RecoverError(
            f"evaluate(model) gave a mean score of {score}; expected a finite float, or one score a sample, "
            "shape (n,). The validation split may be empty, or the model's outputs not finite."
        )
    return score


def restore(model: nn.Module, best: Checkpoint | None) -> None:
    """Write the checkpoint, if there is one, into the model's own tensors."""
    if best is not None:
        for tensor, kept in zip(state(model), best.state, strict=True):
            tensor.copy_(kept)


def state(model: nn.Module) -> list[Tensor]:
    """Parameters, then buffers, as they are; detached."""
    return [t.detach() for t in (*model.parameters(), *model.buffers())]
