"""What was asked of `measure`: which models, on which calls, with how many threads; and what a figure is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from prunus.errors import MeasureError
from prunus.measure.batch import with_batch
from prunus.types import Evaluate, Inputs, Progress


@dataclass(frozen=True, eq=False)
class Cell:
    """One condition: a call of some batch size, run in so many threads; None: threads play no part."""

    example: Inputs
    threads: int | None


@dataclass(frozen=True, eq=False)
class Ask:
    """`example` is the call as given; `cells` are the conditions for what a call takes: batches times threads."""

    names: tuple[str, ...]
    subjects: Mapping[str, nn.Module]
    example: Inputs
    cells: tuple[Cell, ...]
    null: bool
    evaluate: Evaluate | None
    repeats: int | None
    progress: Progress | None


@dataclass(frozen=True)
class Figure:
    """What a Measurement says, but for its name, unit, subject and facts."""

    cell: Cell
    value: float
    spread: tuple[float, float] | None = None
    repeats: int = 1
    estimated: bool = False
    method: str = ""
    samples: tuple[float, ...] = ()


Figures: TypeAlias = "dict[tuple[str, str], list[Figure]]"
"""(metric, subject) -> its figures, one a cell."""


def cells_of(
    example: Inputs, batch: int | Sequence[int] | None, threads: int | Sequence[int] | None
) -> tuple[Cell, ...]:
    """Every batch size with every number of threads, in the order given; by default the call and the threads as is.

    Raises MeasureError for a count below 1 or none at all, and for inputs that have no batch to change.
    """
    sizes, counts = several("batch", batch), several("threads", threads)
    examples = [example if size is None else with_batch(example, size) for size in sizes]
    return tuple(Cell(one, count or torch.get_num_threads()) for one in examples for count in counts)


def several(option: str, given: int | Sequence[int] | None) -> tuple[int | None, ...]:
    """One count or several, each once.

    >>> several("batch", [1, 8, 1])
    (1, 8)
    """
    counts = tuple(dict.fromkeys((given,) if given is None or isinstance(given, int) else given))
    if not counts or any(count is not None and count < 1 for count in counts):
        raise MeasureError(f"{option}={given} is too few; expected at least 1, or None for the default.")
    return counts
