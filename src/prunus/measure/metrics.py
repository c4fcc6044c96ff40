"""The metrics by name, and one function that measures them for one model or for two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from prunus.errors import MeasureError
from prunus.measure.accuracy import accuracy
from prunus.measure.effective import effective_macs
from prunus.measure.facts import facts
from prunus.measure.latency import latencies_ms
from prunus.measure.macs import macs
from prunus.measure.size import compressed_bytes, file_bytes, nonzeros, params
from prunus.measure.untouched import untouched
from prunus.statistics import median_quartiles
from prunus.types import Evaluate, Inputs, Measurement, Progress

UNITS = {
    "params": "params",
    "nonzeros": "params",
    "macs": "MACs",
    "effective_macs": "MACs",
    "bytes": "bytes",
    "compressed_bytes": "bytes",
    "latency_ms": "ms",
    "accuracy": "share",
}


def measure(
    model: nn.Module,
    inputs: Any,
    metrics: str | Sequence[str] = ("params", "bytes", "latency_ms"),
    *,
    against: nn.Module | None = None,
    evaluate: Evaluate | None = None,
    threads: int | None = None,
    repeats: int | None = None,
    runtime: str = "torch",
    progress: Progress | None = None,
) -> tuple[Measurement, ...]:
    """Measure `model` on its example `inputs`, here and now: one Measurement a metric, in the order asked for.

    | metric             | value                                           | spread        | repeats     |
    |--------------------|-------------------------------------------------|---------------|-------------|
    | `params`           | parameters, a tied tensor counted once          | none          | 1           |
    | `nonzeros`         | those of them that are not zero                 | none          | 1           |
    | `macs`             | multiply-accumulates of the example call        | none          | 1           |
    | `effective_macs`   | those of them whose weight is not zero          | none          | 1           |
    | `bytes`            | the state as a safetensors file, really written | none          | 1           |
    | `compressed_bytes` | that file after gzip                            | none          | 1           |
    | `latency_ms`       | median time of the example call                 | quartiles     | calls timed |
    | `accuracy`         | mean of `evaluate(model)`, one score a sample   | 95 % interval | n           |

    Zeros are counted, never called speed: `nonzeros` and `effective_macs` say what a runtime that skips zeros could
    save, `latency_ms` what this one does. Scores have shape (n,); for their interval see `prunus.statistics`.

    `against` is measured too, and its figures follow with subject "against"; the two are timed call by call in turn, in
    one process. `inputs` is a tensor, a tuple of arguments, a dict of keyword arguments, or `Inputs`; of a list of
    these, the first is the example. `threads` holds for the timing only; `repeats` is the calls timed of each model, by
    default as many as fill about 3 s, at least 30. `evaluate` is needed for, and used by, `accuracy` alone.

    Models run in eval mode, without gradients, on copies of the inputs. Their training flags and buffers, torch's
    random state, the grad mode and the thread count are put back.

    Raises MeasureError for an unknown metric or runtime, `accuracy` without `evaluate`, a model with uninitialized
    (lazy) parameters, and what a metric itself refuses.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [(m.metric, m.value, m.unit) for m in measure(net, torch.ones(5, 4), ("params", "macs"))]
    [('params', 23, 'params'), ('macs', 90, 'MACs')]
    """
    names = _names(metrics)
    ask = _Ask(_subjects(model, against), Inputs.examples(inputs)[0], evaluate, threads, repeats, runtime, progress)
    _check(names, ask)
    with untouched(*ask.subjects.values()):
        table = {name: _figures(name, ask) for name in names}
    return tuple(
        _measurement(name, subject, table[name][i], ask) for i, subject in enumerate(ask.subjects) for name in names
    )


@dataclass(frozen=True, eq=False)
class _Ask:
    subjects: dict[str, nn.Module]
    example: Inputs
    evaluate: Evaluate | None
    threads: int | None
    repeats: int | None
    runtime: str
    progress: Progress | None


@dataclass(frozen=True)
class _Figure:
    value: float
    spread: tuple[float, float] | None = None
    repeats: int = 1
    threads: int | None = None


def _names(metrics: str | Sequence[str]) -> tuple[str, ...]:
    names = (metrics,) if isinstance(metrics, str) else tuple(dict.fromkeys(metrics))
    for name in names:
        if name not in UNITS:
            near = get_close_matches(name, UNITS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise MeasureError(f"Unknown metric {name!r}; expected some of {', '.join(UNITS)}.{hint}")
    return names


def _subjects(model: nn.Module, against: nn.Module | None) -> dict[str, nn.Module]:
    return {"model": model} if against is None else {"model": model, "against": against}


def _check(names: Sequence[str], ask: _Ask) -> None:
    if ask.runtime != "torch":
        raise MeasureError(
            f"runtime={ask.runtime!r} cannot be measured; expected 'torch'. prunus.onnx_latency times an ONNX file."
        )
    if "accuracy" in names and ask.evaluate is None:
        raise MeasureError(
            "'accuracy' needs evaluate=, a function of the model that returns one score a sample, shape (n,), or a "
            "bare float."
        )
    for option, count in (("threads", ask.threads), ("repeats", ask.repeats)):
        if count is not None and count < 1:
            raise MeasureError(f"{option}={count} is too few; expected at least 1, or None for the default.")
    for subject, module in ask.subjects.items():
        lazy = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
        if lazy:
            raise MeasureError(
                f"{lazy[0]!r} of {subject} has no shape yet (a lazy module). Call the model once on its inputs first."
            )


def _figures(name: str, ask: _Ask) -> list[_Figure]:
    """The figures of one metric, one a subject."""
    if name == "latency_ms":
        return _latencies(ask)
    figures: list[_Figure] = []
    for model in ask.subjects.values():
        figures.append(_figure(name, model, ask))
        if ask.progress is not None:
            ask.progress(name, len(figures), len(ask.subjects))
    return figures


def _figure(name: str, model: nn.Module, ask: _Ask) -> _Figure:
    if name in _SIZES:
        return _Figure(_SIZES[name](model))
    if name in _CALLS:
        return _Figure(_CALLS[name](model, ask.example))
    assert ask.evaluate is not None  # _check
    return _Figure(*accuracy(model, ask.evaluate))


_SIZES = {"params": params, "nonzeros": nonzeros, "bytes": file_bytes, "compressed_bytes": compressed_bytes}
_CALLS = {"macs": macs, "effective_macs": effective_macs}


def _latencies(ask: _Ask) -> list[_Figure]:
    threads = ask.threads or torch.get_num_threads()
    models = list(ask.subjects.values())
    columns = latencies_ms(models, ask.example, threads=threads, repeats=ask.repeats, progress=ask.progress)
    figures: list[_Figure] = []
    for times in columns:
        median, low, high = median_quartiles(times)
        figures.append(_Figure(median, (low, high), len(times), threads))
    return figures


def _measurement(name: str, subject: str, figure: _Figure, ask: _Ask) -> Measurement:
    at = facts(ask.subjects[subject], ask.example)
    return Measurement(
        metric=name,
        value=figure.value,
        unit=UNITS[name],
        spread=figure.spread,
        repeats=figure.repeats,
        device=at.device,
        threads=figure.threads,
        dtype=at.dtype,
        batch=at.batch,
        subject=subject,
    )
