"""How two figures differ, in words and with an interval: latencies round by round where single calls are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report import words
from prunus.report.words import Change
from prunus.statistics import compare_timings
from prunus.types import Measurement

ROUNDS_AT_LEAST = 6
"""Fewer have no interval of 95 %."""


def compared(old: Measurement, new: Measurement) -> tuple[Change, str]:
    """(the change, how sure it is). Slower is `bad` also where the interval holds 1; it is then said to."""
    rounds = _rounds(old, new)
    if rounds is None:
        said = words.changed(old, new)
        return said, "the spreads overlap" if said.tone == "open" and old.metric != "accuracy" else ""
    ratio, low, high = rounds
    none = low <= 1 <= high
    between = f"takes {low * 100:.3g} to {high * 100:.3g} % of the time (95 %)"
    return words.ratio(1 / ratio, ("faster", "slower"), none), between + (", no difference shown" if none else "")


def _rounds(old: Measurement, new: Measurement) -> tuple[float, float, float] | None:
    """(ratio, low, high) of after over before, from timings of the same rounds."""
    if old.metric != "latency_ms" or not ROUNDS_AT_LEAST <= len(old.samples) == len(new.samples):
        return None
    timings = compare_timings(old.samples, new.samples)
    return timings.ratio, timings.low, timings.high


def labelled(taken: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Figures by metric; by batch and threads too where a metric was taken at several of them."""
    metrics = [figure["metric"] for figure in taken]
    found: dict[str, Mapping[str, Any]] = {}
    for figure in taken:
        name = str(words.NAMES.get(figure["metric"], figure["metric"]))
        several = metrics.count(figure["metric"]) > 1
        found[f"{name}, {at(figure)}" if several else name] = figure
    return found


def at(figure: Mapping[str, Any]) -> str:
    """At what batch and how many threads a figure was taken."""
    batch = f"batch {figure['batch']}" if figure["batch"] else ""
    threads = f"{figure['threads']} thread{'s' * (figure['threads'] != 1)}" if figure["threads"] else ""
    return ", ".join(part for part in (batch, threads) if part)
