"""How long does an ONNX file take in ONNX Runtime, beside the model or beside another file?"""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import MeasureError
from prunus.measure.facts import facts
from prunus.measure.latency import kept, latencies_ms
from prunus.measure.session import Session, named, open_session
from prunus.measure.untouched import tensors, untouched
from prunus.statistics import median_quartiles
from prunus.types import Inputs, Measurement, Progress


def onnx_latency(
    file: str | PathLike[str],
    inputs: Any,
    *,
    against: nn.Module | str | PathLike[str] | None = None,
    threads: int | None = None,
    repeats: int | None = None,
    progress: Progress | None = None,
) -> tuple[Measurement, ...]:
    """Time calls of an ONNX file in ONNX Runtime on the CPU: median and quartiles, in ms, as `latency_ms` of `measure`.

    `against` is the PyTorch model (both runtimes side by side) or another file (the network before, in the same
    runtime); it is timed call by call in turn with the file, and its figure follows with subject "against".
    `versions` of a figure says which runtime it is of. `inputs` are given as for `export`; of several examples, the
    first counts. `threads` (by default torch's own number) holds for both runtimes. The model is left as it was.

    Raises MeasureError where `onnxruntime` is missing, the file cannot be run, or the inputs are not on the CPU.
    """
    example = Inputs.examples(inputs)[0]
    if threads is not None and threads < 1:
        raise MeasureError(f"threads={threads} is too few; expected at least 1, or None for the default.")
    if any(t.device.type != "cpu" for t in tensors((example.args, dict(example.kwargs)))):
        raise MeasureError("ONNX Runtime is timed on the CPU, but the inputs are elsewhere. Pass them on the CPU.")
    used = threads or torch.get_num_threads()
    subjects = {"model": _timeable(file, used)}
    if against is not None:
        subjects["against"] = _timeable(against, used)
    with untouched(*subjects.values()):
        columns = latencies_ms(list(subjects.values()), example, threads=used, repeats=repeats, progress=progress)
    return tuple(
        _row(subject, model, times, example, used)
        for (subject, model), times in zip(subjects.items(), columns, strict=True)
    )


class _File(nn.Module):
    """An ONNX file that is called as the model it was exported from."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return self.session.run(named(self.session, Inputs(args, kwargs)))


def _timeable(subject: nn.Module | str | PathLike[str], threads: int) -> nn.Module:
    return subject if isinstance(subject, nn.Module) else _File(open_session(Path(fspath(subject)), threads=threads))


def _row(subject: str, model: nn.Module, times: list[float], example: Inputs, threads: int) -> Measurement:
    median, low, high = median_quartiles(times)
    at = facts(model, example)
    ours = {"onnxruntime": model.session.version} if isinstance(model, _File) else {"torch": torch.__version__}
    return Measurement(
        metric="latency_ms",
        value=median,
        unit="ms",
        spread=(low, high),
        repeats=len(times),
        device=at.device,
        threads=threads,
        dtype=at.dtype,
        batch=at.batch,
        subject=subject,
        versions=ours,
        samples=kept(times),
    )
