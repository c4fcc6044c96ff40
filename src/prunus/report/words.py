"""Figures and names in words for people: short numbers, shares, changes that say better or worse."""

from __future__ import annotations

from dataclasses import dataclass

from prunus.types import Measurement

NAMES = {
    "params": "parameters",
    "nonzeros": "weights that are not zero",
    "macs": "MACs",
    "effective_macs": "effective MACs",
    "bytes": "file size",
    "compressed_bytes": "file size, gzip",
    "latency_ms": "latency",
    "throughput": "throughput",
    "memory_bytes": "peak memory",
    "memory_floor_bytes": "memory before any model",
    "energy_j": "energy",
    "accuracy": "accuracy",
}
SAME = 0.005
"""Two figures whose ratio is nearer to 1 than this are called unchanged."""


@dataclass(frozen=True)
class Change:
    """A change in words; `tone` is `good`, `bad`, `open` (within the spread) or `same`."""

    words: str
    tone: str


def short(value: float) -> str:
    """At most four characters and a prefix.

    >>> short(1234567), short(999), short(64.0), short(0.5)
    ('1.23 M', '999', '64', '0.5')
    """
    for size, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}" if abs(value) < 1000 * size else f"{value / size:,.0f}{prefix}"
    return f"{value:.3g}" if value != int(value) else f"{int(value)}"


def bytes_short(value: float) -> str:
    """Bytes by powers of 1024.

    >>> bytes_short(2048), bytes_short(3 * 2**20)
    ('2.0 KiB', '3.0 MiB')
    """
    for size, prefix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= size:
            return f"{value / size:,.1f} {prefix}"
    return f"{value:,.0f} bytes"


def is_share(m: Measurement) -> bool:
    """Is it an accuracy that reads as a share?"""
    return m.metric == "accuracy" and 0 <= m.value <= 1


def value_of(m: Measurement) -> str:
    """The figure alone, short."""
    if is_share(m):
        return f"{m.value * 100:.1f} %"
    if m.metric.endswith("bytes"):
        return bytes_short(m.value)
    if m.metric == "latency_ms":
        return f"{m.value:.3g} ms" if m.value < 100 else f"{m.value:,.0f} ms"
    if m.metric in ("throughput", "energy_j"):
        return f"{short(m.value)} {m.unit}"
    return short(m.value) if m.metric != "accuracy" else f"{m.value:.4g}"


def spread_of(m: Measurement) -> str:
    """Its spread, or that the count is exact."""
    if m.spread is None:
        return ""
    low, high = m.spread
    if is_share(m):
        return f"{low * 100:.1f} to {high * 100:.1f} %"
    if m.metric.endswith("bytes"):
        return f"{bytes_short(low)} to {bytes_short(high)}"
    return f"{short(low)} to {short(high)}" if m.metric == "throughput" else f"{low:.3g} to {high:.3g}"


def what_spread(m: Measurement) -> str:
    """What kind of spread that is."""
    if m.spread is None:
        return "exact count" if not m.estimated and m.metric != "accuracy" else "no interval"
    spreads = {"accuracy": "95 % interval", "latency_ms": "quartiles", "throughput": "quartiles"}
    return spreads.get(m.metric, "least to most")


def changed(old: Measurement, new: Measurement) -> Change:
    """How much better or worse: a factor, or points of accuracy."""
    if old.metric == "accuracy":
        difference = new.value - old.value
        points = f"{difference * 100:+.1f} points" if is_share(old) and is_share(new) else f"{difference:+.4g}"
        return Change(points.replace("-", "−"), "open" if difference else "same")
    if old.value <= 0 or new.value <= 0:
        return Change("–", "same")
    if old.metric == "throughput":
        return ratio(new.value / old.value, ("more", "less"), _overlap(old, new))
    return ratio(old.value / new.value, _words(old.metric), _overlap(old, new))


def ratio(factor: float, words: tuple[str, str], overlap: bool = False) -> Change:
    """A factor in words; worse is always said, also within the spread.

    >>> ratio(2.0, ("faster", "slower")).words, ratio(0.5, ("faster", "slower")).words
    ('2.00× faster', '2.00× slower')
    """
    if abs(factor - 1) < SAME:
        return Change("unchanged", "same")
    if factor < 1:
        return Change(f"{1 / factor:.2f}× {words[1]}", "bad")
    return Change(f"{factor:.2f}× {words[0]}", "open" if overlap else "good")


def _is_amount(metric: str) -> bool:
    """Is it an amount that is not counted: memory, energy?"""
    return metric.startswith(("memory", "energy"))


def _words(metric: str) -> tuple[str, str]:
    if metric == "latency_ms":
        return "faster", "slower"
    if _is_amount(metric):
        return "less", "more"
    return ("smaller", "larger") if metric.endswith("bytes") else ("fewer", "more")


def _overlap(old: Measurement, new: Measurement) -> bool:
    """Do the spreads of two figures share a value?"""
    if old.spread is None or new.spread is None:
        return False
    return old.spread[0] <= new.spread[1] and new.spread[0] <= old.spread[1]


def share(pair: list[int] | None) -> str:
    """What is left of a pair (before, after), in percent."""
    if pair is None or not pair[0]:
        return ""
    part = pair[1] / pair[0] * 100
    return f"{part:.0f} %" if part >= 10 or part == 0 else f"{part:.1f} %"


def p_value(p: float) -> str:
    """A p-value as it is usually written.

    >>> p_value(0.00002), p_value(0.0412)
    ('p < 0.001', 'p = 0.041')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
