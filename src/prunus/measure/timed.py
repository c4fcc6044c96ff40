"""Latency and throughput: two figures of the same timings."""

from __future__ import annotations

from torch import nn

from prunus.errors import MeasureError
from prunus.measure.ask import Ask, Cell, Figure, Figures
from prunus.measure.facts import facts
from prunus.measure.latency import kept, latencies_ms
from prunus.statistics import median_quartiles


def timed(ask: Ask) -> Figures:
    """Every subject in turn, call by call, cell by cell."""
    names, models = _order(ask)
    found: Figures = {}
    for cell in ask.cells:
        size = _batch(ask, cell)
        columns = latencies_ms(models, cell.example, threads=cell.threads, repeats=ask.repeats, progress=ask.progress)
        for subject, times in zip(names, columns, strict=False):
            latency = latency_of(times, cell)
            found.setdefault(("latency_ms", subject), []).append(latency)
            found.setdefault(("throughput", subject), []).append(throughput_of(latency, size))
    return found


def _order(ask: Ask) -> tuple[list[str], list[nn.Module]]:
    """The subjects, and the models in the order of their calls in a round, which may go on after the last subject.

    A call is faster after one of the same model, which left its weights in the cache. In rounds a b, b a, a b every
    model follows itself every other time. With "null" they are a b n a, a n b a: again every one does, and `against`
    differs from "null" by nothing. Without the second a, `against` would follow the other model more often than "null".
    """
    names, models = list(ask.subjects), list(ask.subjects.values())
    return ([*names, "null"], [*models, models[-1], models[0]]) if ask.null else (names, models)


def latency_of(times: list[float], cell: Cell) -> Figure:
    median, low, high = median_quartiles(times)
    return Figure(cell, median, (low, high), len(times), samples=kept(times))


def throughput_of(latency: Figure, batch: int) -> Figure:
    """Samples a second at the median latency; its quartiles are those of the latency, which change places."""
    low, high = latency.spread or (latency.value, latency.value)
    fast, middle, slow = (1000 * batch / ms if ms else 0.0 for ms in (low, latency.value, high))
    return Figure(latency.cell, middle, (slow, fast), latency.repeats)


def _batch(ask: Ask, cell: Cell) -> int:
    """Samples in the call; 0 where that is not asked."""
    batch = facts(ask.subjects["model"], cell.example).batch
    if "throughput" in ask.names and batch is None:
        raise MeasureError(
            "'throughput' counts samples, but no tensor of these inputs has a dim 0. Leave it out of metrics."
        )
    return batch or 0
