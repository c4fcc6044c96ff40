"""Latency and throughput: two figures of the same timings."""

from __future__ import annotations

from prunus.errors import MeasureError
from prunus.measure.ask import Ask, Cell, Figure, Figures
from prunus.measure.facts import facts
from prunus.measure.latency import kept, latencies_ms
from prunus.statistics import median_quartiles


def timed(ask: Ask) -> Figures:
    """Every subject in turn, call by call, and with `null` the last one a second time as "null"; cell by cell."""
    subjects = dict(ask.subjects)
    if ask.null:
        subjects["null"] = subjects["against"]
    found: Figures = {}
    for cell in ask.cells:
        size = _batch(ask, cell)
        columns = latencies_ms(
            list(subjects.values()), cell.example, threads=cell.threads, repeats=ask.repeats, progress=ask.progress
        )
        for subject, times in zip(subjects, columns, strict=True):
            latency = latency_of(times, cell)
            found.setdefault(("latency_ms", subject), []).append(latency)
            found.setdefault(("throughput", subject), []).append(throughput_of(latency, size))
    return found


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
