"""The rows of a demonstration: what each model costs, measured beside the dense one, and what it gets right."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.measure import measure
from prunus.result import Result
from prunus.statistics import PairedChange, paired
from prunus.tasks import digits
from prunus.types import Inputs, Measurement, Progress

BATCH = 64
DENSE = "dense"
PRUNED = "pruned, recovered"


@dataclass(frozen=True, eq=False)
class Row:
    """One model of the comparison: what it costs, and which of the test images it reads correctly; (n,) of 0 and 1."""

    figures: Mapping[str, Measurement]
    correct: Tensor

    def against(self, dense: Row) -> PairedChange:
        return paired(dense.correct, self.correct)


@dataclass(frozen=True, eq=False)
class Demo:
    """The rows of one seed, by name, and the result behind the last one."""

    rows: Mapping[str, Row]
    result: Result


def rows_of(models: Mapping[str, nn.Module], metrics: Sequence[str]) -> dict[str, Row]:
    return {name: _row(model, models[DENSE], metrics) for name, model in models.items()}


def _row(model: nn.Module, dense: nn.Module, metrics: Sequence[str]) -> Row:
    """Costs of a model, its latency measured interleaved with the dense one's, and its answers."""
    figures = measure(model, Inputs.of(example()), metrics, against=dense, threads=1)
    named = {m.metric: m for m in figures if m.subject == "model"}
    beside = next(m for m in figures if m.subject == "against" and m.metric == "latency_ms")
    return Row({**named, "dense_latency_ms": beside}, digits.correct(model))


def example() -> Tensor:
    """The call that is traced and timed: a batch of real images."""
    return digits.load().train.images[:BATCH]


def renamed(what: str, progress: Progress | None) -> Progress | None:
    """The same progress under another name."""
    return None if progress is None else lambda _, done, total: progress(what, done, total)


@contextmanager
def one_thread() -> Generator[None]:
    """For a network this small more threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
