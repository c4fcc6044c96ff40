"""One model of the coverage table: how to make it, and how to call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Maker = Callable[[], nn.Module]
Call = Any
"""What `prunus.trace` takes as one example call: a tensor, a tuple of arguments, or a mapping of keywords."""


@dataclass(frozen=True)
class Entry:
    """A model with random weights. `call(batch)` draws an example; `calls` are compared, more where values steer."""

    name: str
    family: str
    make: Maker
    call: Callable[[int], Call]
    calls: int = 2

    @property
    def title(self) -> str:
        return f"{self.family}/{self.name}"


def images(*shape: int) -> Callable[[int], Tensor]:
    """Draws a batch of normally distributed pixels."""
    return lambda batch: torch.randn(batch, *shape)


def run(model: nn.Module, call: Call) -> Any:
    """Call a model as `prunus.trace` would."""
    if isinstance(call, Tensor):
        return model(call)
    return model(**call) if isinstance(call, dict) else model(*call)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A copy of a call in which every floating tensor has this dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value.clone()
    if isinstance(value, dict):
        return {key: cast(item, dtype) for key, item in value.items()}
    return type(value)(cast(item, dtype) for item in value) if isinstance(value, list | tuple) else value
