"""Values in the precision of a proof: float64, to tell rounding from a fault, or float32 for huge models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.errors import PlanError
from prunus.graph.fit import lifted
from prunus.graph.nest import input_tensors, with_tensors
from prunus.graph.program import Program
from prunus.types import Inputs, Precise

ACCEPTED = 1e-9
"""Relative error accepted in float64."""
HUGE = 100_000_000
"""Models of more parameters are proven in float32, unless float64 is asked for."""

Lookup = Callable[[str], Tensor]


@dataclass(frozen=True)
class Precision:
    """How a proof computes, and the relative error that it accepts."""

    dtype: torch.dtype = torch.float64
    accepted: float = ACCEPTED

    def value(self, tensor: Tensor) -> Tensor:
        """A tensor of its own: at this precision where it is floating."""
        kind = self.dtype if tensor.dtype.is_floating_point else tensor.dtype
        return tensor.detach().to(kind, copy=True)

    def state(self, state: Mapping[str, Tensor]) -> Lookup:
        return lambda name: self.value(state[name])

    def inputs(self, example: Inputs) -> Inputs:
        return with_tensors(example, {path: self.value(t) for path, t in input_tensors(example).items()})

    def program(self, program: Program) -> Program:
        return lifted(program, self.dtype)

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


NATIVE = Precision(torch.float32, 1e-4)


def precision_for(model: nn.Module, asked: Precise | None) -> Precision:
    """Float64, or float32 for `"native"` and for models so large that float64 would not fit beside them.

    Raises `PlanError` for any other.
    """
    if asked not in (None, "native", "float64"):
        raise PlanError(f'{asked!r} is no precision of a proof; expected "native" (float32) or "float64".')
    size = sum(p.numel() for p in model.parameters())
    return NATIVE if asked == "native" or (size > HUGE and asked != "float64") else Precision()
