"""The small values that cross every floor: inputs, budgets, measurements and the callables users pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from prunus.errors import BudgetError, TraceError

Batch: TypeAlias = Any
Loss: TypeAlias = Callable[[nn.Module, Batch], Tensor]
"""Scalar, the mean over the batch."""
Evaluate: TypeAlias = Callable[[nn.Module], "Tensor | float"]
"""One score a sample, shape (n,), or a bare float (shown without an interval)."""
Recover: TypeAlias = Callable[[nn.Module], "nn.Module | None"]
"""Trains the model it is given, in place or returning another of the same structure."""
Means: TypeAlias = Literal["kept", "whole"]
"""What a mean over units divides by once some are removed: how many are kept, or how many there were."""
Precise: TypeAlias = Literal["native", "float64"]
"""In what a proof computes: float32 (`"native"`), or twice that."""
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


def renamed(what: str, progress: Progress | None) -> Progress | None:
    """The same progress under another name."""
    return None if progress is None else lambda _, done, total: progress(what, done, total)


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least: squares underflow in half precision, and sums lose what they add."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


BUDGETS = ("units", "params", "macs")


@dataclass(frozen=True, eq=False)
class Inputs:
    """An example call of the model: `model(*args, **kwargs)`."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @staticmethod
    def of(value: Any) -> Inputs:
        """Read a tensor as one argument, a tuple as arguments, a mapping as keyword arguments."""
        if isinstance(value, Inputs):
            return value
        if isinstance(value, Tensor):
            return Inputs((value,))
        if isinstance(value, tuple):
            return Inputs(value)  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(value, Mapping):
            return Inputs((), dict(value))  # pyright: ignore[reportUnknownArgumentType]
        raise TraceError(
            f"Inputs are given as {type(value).__name__}; expected a tensor, a tuple (arguments), a dict (keyword "
            "arguments), prunus.Inputs(args, kwargs), or a list of these (several examples)."
        )

    @staticmethod
    def examples(value: Any) -> list[Inputs]:
        """Read one example, or a list of examples."""
        values: list[Any] = value if isinstance(value, list) else [value]
        if not values:
            raise TraceError("Inputs are an empty list; expected at least one example call.")
        return [Inputs.of(v) for v in values]


@dataclass(frozen=True)
class Budget:
    """How much may be left: `metric` at most `at_most`.

    Relative budgets are shares in (0, 1] of the traced model's cost; absolute ones (`relative=False`) are counts.
    `units` is the kept share of prunable units, `params` the parameters of the whole model, `macs` its
    multiply-accumulates on the example inputs.

    >>> Budget("macs", at_most=0.5)
    Budget(metric='macs', at_most=0.5, relative=True)
    """

    metric: str
    at_most: float
    relative: bool = True

    def __post_init__(self) -> None:
        if self.metric not in BUDGETS:
            near = get_close_matches(self.metric, BUDGETS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise BudgetError(f"Unknown budget metric {self.metric!r}; expected one of {', '.join(BUDGETS)}.{hint}")
        given: Any = self.at_most
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise BudgetError(
                f"at_most={self.at_most!r} of Budget({self.metric!r}) is a {type(self.at_most).__name__}; "
                "expected a number."
            )
        if self.relative and not 0 < self.at_most <= 1:
            raise BudgetError(
                f"Budget({self.metric!r}, at_most={self.at_most}) is outside (0, 1]: a relative budget is the share "
                "that stays, 0.25 keeps a quarter. For a count, pass relative=False."
            )
        if not self.relative and not self.at_most > 0:
            raise BudgetError(f"Budget({self.metric!r}, at_most={self.at_most}, relative=False) must be positive.")


@dataclass(frozen=True)
class Measurement:
    """One figure, how it was got, and how sure it is.

    `spread` is (lower, upper): quartiles for timings, the 95 % interval for accuracies, the least and the most for
    memory and energy, None for exact counts. `method` says how a figure was got that can be got in several ways.

    `samples` are single timings of a latency, in order, of the same rounds for every subject: all of them, or 300.
    """

    metric: str
    value: float
    unit: str
    spread: tuple[float, float] | None = None
    repeats: int = 1
    device: str = "cpu"
    threads: int | None = None
    dtype: str | None = None
    batch: int | None = None
    estimated: bool = False
    subject: str = "model"
    versions: Mapping[str, str] = field(default_factory=lambda: {"torch": torch.__version__})
    method: str = ""
    samples: tuple[float, ...] = field(default=(), repr=False)

    @staticmethod
    def of(entries: Mapping[str, Any]) -> Measurement:
        """Read what `dataclasses.asdict` gave, also after a way through JSON, where tuples are lists.

        >>> Measurement.of({"metric": "latency_ms", "value": 2, "unit": "ms", "spread": [1, 3]}).spread
        (1, 3)
        """
        read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()}
        return Measurement(**read)
