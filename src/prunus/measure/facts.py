"""Where a figure was measured: device, dtype and batch of a model and its example call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.measure.untouched import tensors
from prunus.types import Inputs


@dataclass(frozen=True)
class Facts:
    """`batch` is dim 0 of the first tensor of the call, `dtype` the model's first floating one; None: there is none."""

    device: str
    dtype: str | None
    batch: int | None


def facts(model: nn.Module, example: Inputs) -> Facts:
    """Read the facts of a model from its state, and from the inputs where it has none.

    >>> facts(nn.Linear(4, 2), Inputs.of(torch.ones(3, 4)))
    Facts(device='cpu', dtype='float32', batch=3)
    """
    inputs = _inputs(example)
    floating = [t for t in _state(model) + inputs if t.is_floating_point()]
    dtype = str(floating[0].dtype).removeprefix("torch.") if floating else None
    batch = inputs[0].shape[0] if inputs and inputs[0].ndim else None
    return Facts(str(device_of(model, example)), dtype, batch)


def device_of(model: nn.Module, example: Inputs) -> torch.device:
    """The device of the first parameter or buffer, else of the first input, else the CPU."""
    first = next(iter(_state(model) + _inputs(example)), None)
    return torch.device("cpu") if first is None else first.device


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _inputs(example: Inputs) -> list[Tensor]:
    return tensors((example.args, dict(example.kwargs)))
