"""Values in float64, so that a proof can tell rounding from a fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prunus.graph.nest import input_tensors, with_tensors
from prunus.types import Inputs

ACCEPTED = 1e-9
"""Relative error accepted in float64."""

Lookup = Callable[[str], Tensor]


def double(tensor: Tensor) -> Tensor:
    """A tensor of its own: float64 where it is floating."""
    return tensor.detach().to(torch.float64, copy=True) if tensor.dtype.is_floating_point else tensor.detach().clone()


def doubled(state: Mapping[str, Tensor]) -> Lookup:
    return lambda name: double(state[name])


def doubled_inputs(example: Inputs) -> Inputs:
    return with_tensors(example, {path: double(t) for path, t in input_tensors(example).items()})
