"""The metrics by name, and one function that measures them for one model or for two side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from prunus.errors import MeasureError
from prunus.measure.accuracy import accuracy
from prunus.measure.ask import Ask, Cell, Figure, Figures, cells_of, several
from prunus.measure.effective import effective_macs
from prunus.measure.energy import energy
from prunus.measure.facts import facts
from prunus.measure.macs import macs
from prunus.measure.memory import memory
from prunus.measure.size import compressed_bytes, file_bytes, nonzeros, params
from prunus.measure.timed import timed
from prunus.measure.untouched import untouched
from prunus.types import Evaluate, Inputs, Measurement, Progress

UNITS = {
    "params": "params",
    "nonzeros": "params",
    "macs": "MACs",
    "effective_macs": "MACs",
    "bytes": "bytes",
    "compressed_bytes": "bytes",
    "latency_ms": "ms",
    "throughput": "samples/s",
    "memory_bytes": "bytes",
    "memory_floor_bytes": "bytes",
    "energy_j": "J",
    "accuracy": "share",
}


def measure(
    model: nn.Module,
    inputs: Any,
    metrics: str | Sequence[str] = ("params", "bytes", "latency_ms"),
    *,
    against: nn.Module | None = None,
    batch: int | Sequence[int] | None = None,
    threads: int | Sequence[int] | None = None,
    null: bool = False,
    evaluate: Evaluate | None = None,
    repeats: int | None = None,
    runtime: str = "torch",
    progress: Progress | None = None,
) -> tuple[Measurement, ...]:
    """Measure `model` on its example `inputs`, here and now: one Measurement a metric, in the order asked for.

    | metric               | value                                           | spread        | repeats       |
    |----------------------|-------------------------------------------------|---------------|---------------|
    | `params`             | parameters, a tied tensor counted once          | none          | 1             |
    | `nonzeros`           | those of them that are not zero                 | none          | 1             |
    | `macs`               | multiply-accumulates of the example call        | none          | 1             |
    | `effective_macs`     | those of them whose weight is not zero          | none          | 1             |
    | `bytes`              | the state as a safetensors file, really written | none          | 1             |
    | `compressed_bytes`   | that file after gzip                            | none          | 1             |
    | `latency_ms`         | median time of a call                           | quartiles     | calls timed   |
    | `throughput`         | samples a second: batch / that median           | quartiles     | calls timed   |
    | `memory_bytes`       | peak memory of a call, less its floor           | least, most   | processes, 3  |
    | `memory_floor_bytes` | that floor: Python, torch and prunus, imported  | least, most   | processes, 3  |
    | `energy_j`           | joules of a call, less what idling takes        | least, most   | calls metered |
    | `accuracy`           | mean of `evaluate(model)`, one score a sample   | 95 % interval | n             |

    Zeros are counted, never called speed: `nonzeros` and `effective_macs` say what a runtime that skips zeros could
    save, `latency_ms` what this one does. Scores have shape (n,); for their interval see `prunus.statistics`.

    Memory is that of the model's graph: it is captured, written and run once by a fresh process, so it holds weights,
    inputs and activations in full, whatever this process holds; on CUDA, what torch allocated for the call here.
    Energy comes from a counter of the machine (RAPL, NVML). Where none can be read it is an estimate, which ignores
    zeros like the runtimes do; `estimated` and `method` say so, and why.

    `against` is measured too, and its figures follow with subject "against"; the two are timed call by call in turn, in
    one process. With `null`, `against` is timed a second time among these calls, and its figures follow with subject
    "null": dense against dense shows what the machine's noise alone makes. See `statistics.compare_timings`.

    What a call takes (latency, throughput, memory, energy) is measured once for each of `batch` and each of `threads`:
    `batch=(1, 64)` repeats or cuts the rows of the example, of which dim 0 of every tensor must be the batch. All other
    metrics are about the example as given. `inputs` is a tensor, a tuple of arguments, a dict of keyword arguments, or
    `Inputs`; of a list of these, the first is the example. `repeats` is the calls timed of each model, by default as
    many as fill about 3 s, at least 30 (and the calls metered of each in a round). `evaluate` is for `accuracy` alone.

    Models run in eval mode, without gradients, on copies of the inputs. Their training flags and buffers, torch's
    random state, the grad mode and the thread count are put back.

    Raises MeasureError for an unknown metric or runtime, `accuracy` without `evaluate`, `null` without `against`, a
    batch that the inputs do not have, a model with uninitialized (lazy) parameters, and what a metric itself refuses.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [(m.metric, m.value, m.unit) for m in measure(net, torch.ones(5, 4), ("params", "macs"))]
    [('params', 23, 'params'), ('macs', 90, 'MACs')]
    >>> [(m.batch, len(m.samples)) for m in measure(net, torch.ones(5, 4), "latency_ms", batch=(1, 8), repeats=7)]
    [(1, 7), (8, 7)]
    """
    example = Inputs.examples(inputs)[0]
    subjects = {"model": model} if against is None else {"model": model, "against": against}
    cells = cells_of(example, batch, threads)
    ask = Ask(_names(metrics), subjects, example, cells, null, evaluate, repeats, progress)
    _check(ask, runtime)
    with untouched(*subjects.values()):
        figures = _figures(ask)
    return tuple(
        _measurement(name, subject, figure, ask)
        for subject in (*subjects, "null")
        for name in ask.names
        for figure in figures.get((name, subject), ())
    )


def _names(metrics: str | Sequence[str]) -> tuple[str, ...]:
    names = (metrics,) if isinstance(metrics, str) else tuple(dict.fromkeys(metrics))
    for name in names:
        if name not in UNITS:
            near = get_close_matches(name, UNITS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise MeasureError(f"Unknown metric {name!r}; expected some of {', '.join(UNITS)}.{hint}")
    return names


def _check(ask: Ask, runtime: str) -> None:
    if runtime != "torch":
        raise MeasureError(
            f"runtime={runtime!r} cannot be measured; expected 'torch'. prunus.onnx_latency times an ONNX file."
        )
    if "accuracy" in ask.names and ask.evaluate is None:
        raise MeasureError(
            "'accuracy' needs evaluate=, a function of the model that returns one score a sample, shape (n,), or a "
            "bare float."
        )
    if ask.null and "against" not in ask.subjects:
        raise MeasureError(
            "null=True times `against` a second time, but there is none; pass against=, the dense model."
        )
    several("repeats", ask.repeats)
    for subject, module in ask.subjects.items():
        lazy = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
        if lazy:
            raise MeasureError(
                f"{lazy[0]!r} of {subject} has no shape yet (a lazy module). Call the model once on its inputs first."
            )


def _figures(ask: Ask) -> Figures:
    """The figures of every metric; those that come from the same runs are got together, once."""
    found: Figures = {}
    for name in ask.names:
        if (name, "model") not in found:
            found |= _COSTS[name](ask) if name in _COSTS else _counted(name, ask)
    return found


_COSTS: dict[str, Callable[[Ask], Figures]] = {
    "latency_ms": timed,
    "throughput": timed,
    "memory_bytes": memory,
    "memory_floor_bytes": memory,
    "energy_j": energy,
}
_SIZES = {"params": params, "nonzeros": nonzeros, "bytes": file_bytes, "compressed_bytes": compressed_bytes}
_CALLS = {"macs": macs, "effective_macs": effective_macs}


def _counted(name: str, ask: Ask) -> Figures:
    """What does not depend on the machine: counts, and accuracy."""
    found: Figures = {}
    for subject, model in ask.subjects.items():
        found[name, subject] = [_count(name, model, ask)]
        if ask.progress is not None:
            ask.progress(name, len(found), len(ask.subjects))
    return found


def _count(name: str, model: nn.Module, ask: Ask) -> Figure:
    cell = Cell(ask.example, None)
    if name in _SIZES:
        return Figure(cell, _SIZES[name](model))
    if name in _CALLS:
        return Figure(cell, _CALLS[name](model, ask.example))
    assert ask.evaluate is not None  # _check
    return Figure(cell, *accuracy(model, ask.evaluate))


def _measurement(name: str, subject: str, figure: Figure, ask: Ask) -> Measurement:
    at = facts(ask.subjects["against" if subject == "null" else subject], figure.cell.example)
    return Measurement(
        metric=name,
        value=figure.value,
        unit=UNITS[name],
        spread=figure.spread,
        repeats=figure.repeats,
        device=at.device,
        threads=figure.cell.threads,
        dtype=at.dtype,
        batch=at.batch,
        estimated=figure.estimated,
        subject=subject,
        method=figure.method,
        samples=figure.samples,
    )
