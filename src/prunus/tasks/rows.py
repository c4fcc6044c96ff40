"""The rows of a demonstration: what each model costs, measured beside the dense one, and what it gets right."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from prunus.export import Exported, export
from prunus.measure import measure, onnx_latency
from prunus.result import Result
from prunus.statistics import PairedChange, paired
from prunus.tasks import digits
from prunus.types import Inputs, Measurement, Progress

BATCH = 64
DENSE = "dense"
PRUNED = "pruned, recovered"
REPEATS: int | None = None
"""Calls timed of each model; None: as many as fill about 3 s."""


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


def rows_of(models: Mapping[str, nn.Module], metrics: Sequence[str], progress: Progress | None) -> dict[str, Row]:
    """Each model in PyTorch and, as an exported file that was compared with it, in ONNX Runtime."""
    rows: dict[str, Row] = {}
    with TemporaryDirectory(prefix="prunus-") as folder:
        dense = export(models[DENSE], example(), Path(folder) / "dense.onnx")
        for number, (name, model) in enumerate(models.items()):
            if progress is not None:
                progress("measure each model in both runtimes", number, len(models))
            file = export(model, example(), Path(folder) / f"{number}.onnx")
            figures = {**_in_torch(model, models[DENSE], metrics), **_in_onnx(file, dense)}
            rows[name] = Row(figures, digits.correct(model))
    return rows


def _in_torch(model: nn.Module, dense: nn.Module, metrics: Sequence[str]) -> dict[str, Measurement]:
    """Costs of a model, its latency measured interleaved with the dense one's."""
    figures = measure(model, Inputs.of(example()), metrics, against=dense, threads=1, repeats=REPEATS)
    beside = next(m for m in figures if m.subject == "against" and m.metric == "latency_ms")
    return {**{m.metric: m for m in figures if m.subject == "model"}, "dense_latency_ms": beside}


def _in_onnx(file: Exported, dense: Exported) -> dict[str, Measurement]:
    mine, beside = onnx_latency(file, example(), against=dense, threads=1, repeats=REPEATS)
    return {"onnx_latency_ms": mine, "dense_onnx_latency_ms": beside}


def example() -> Tensor:
    """The call that is traced and timed: a batch of real images."""
    return digits.load().train.images[:BATCH]


@contextmanager
def one_thread() -> Generator[None]:
    """For a network this small more threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
