"""What changed at a glance: a card a metric, the baselines as a table, and where it all came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from prunus.report import words
from prunus.report.compared import at, compared, labelled
from prunus.report.facts import Facts
from prunus.report.words import Change
from prunus.types import Measurement


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a figure, what it is unsure by, and how to see it."""

    text: str
    under: tuple[str, ...] = ()
    tone: str = ""


Table: TypeAlias = tuple[list[str], list[tuple[str, list[Cell]]]]
"""Headings, and (name, cells) a row."""


@dataclass(frozen=True)
class Card:
    """One metric before and after."""

    name: str
    change: Change
    before: str
    after: str
    spread_before: str
    spread_after: str
    note: str
    left: float | None
    """After over before, at most 1, where a bar of it says something."""


def cards(facts: Facts) -> list[Card]:
    """A card for each metric that was measured before and after, the ones that users ask for first."""
    pairs = [
        (Measurement.of(old), Measurement.of(new)) for old, new in zip(facts["before"], facts["after"], strict=True)
    ]
    return [_card(old, new, facts["change"]) for old, new in sorted(pairs, key=_rank)]


def _rank(pair: tuple[Measurement, Measurement]) -> int:
    order = (
        "latency_ms",
        "accuracy",
        "throughput",
        "energy_j",
        "macs",
        "effective_macs",
        "params",
        "nonzeros",
        "bytes",
    )
    return order.index(pair[0].metric) if pair[0].metric in order else len(order)


def _card(old: Measurement, new: Measurement, change: dict[str, Any] | None) -> Card:
    left = new.value / old.value if old.value > 0 else 1.0
    said, sure = compared(old, new)
    said = _quality(said, change) if old.metric == "accuracy" else said
    return Card(
        words.NAMES.get(old.metric, old.metric),
        said,
        words.value_of(old),
        words.value_of(new),
        words.spread_of(old),
        words.spread_of(new),
        _note(new, sure, change),
        min(max(left, 0.0), 1.0) if old.metric != "accuracy" else None,
    )


def _quality(said: Change, change: dict[str, Any] | None) -> Change:
    """A drop is bad where its interval excludes none."""
    if change is None:
        return said
    return Change(said.words, "bad" if change["low"] > 0 else "good" if change["high"] < 0 else "open")


def _note(m: Measurement, sure: str, change: dict[str, Any] | None) -> str:
    mark = "estimate" if m.estimated else ""
    if m.metric == "accuracy" and change is not None:
        method = "McNemar" if change["binary"] else "paired t"
        low, high = -change["high"], -change["low"]
        between = f"{low * 100:+.1f} to {high * 100:+.1f} points" if words.is_share(m) else f"{low:+.3g} to {high:+.3g}"
        return f"change {between} (95 %), {method} {words.p_value(change['p'])}, n = {change['n']}".replace("-", "−")
    if m.metric == "latency_ms":
        where = at({"batch": m.batch, "threads": m.threads})
        return ", ".join(part for part in (sure, "median and quartiles", where, m.device, mark) if part)
    per = f"a call of batch {m.batch}" if m.metric.endswith("macs") and m.batch else ""
    return ", ".join(part for part in (sure, words.what_spread(m) if not mark else "", per, mark) if part)


def baseline_table(rows: list[dict[str, Any]]) -> Table:
    """(headings, (name, cells) a row): costs, latency beside the dense model's, accuracy and its drop."""
    if not rows:
        return [], []
    costs = [name for name in words.NAMES if name in rows[0]["figures"] and name not in ("latency_ms", "accuracy")]
    heads = [words.NAMES[name] for name in costs]
    return [*heads, "latency", "accuracy", "drop, points"], [
        (row["name"], [*_costs(row, costs), _latency(row), *_answers(row)]) for row in rows
    ]


def _costs(row: dict[str, Any], costs: list[str]) -> list[Cell]:
    """MACs are those of one sample."""
    found: list[Cell] = []
    for name in costs:
        m = Measurement.of(row["figures"][name])
        found.append(Cell(words.short(m.value / (m.batch or 1)) if name.endswith("macs") else words.value_of(m)))
    return found


def _latency(row: dict[str, Any]) -> Cell:
    if "latency_ms" not in row["figures"]:
        return Cell("–")
    m = Measurement.of(row["figures"]["latency_ms"])
    dense = row["figures"].get("dense_latency_ms")
    if dense is None or row["change"] is None:
        return Cell(words.value_of(m), (words.spread_of(m),))
    said, _ = compared(Measurement.of(dense), m)
    return Cell(words.value_of(m), (said.words,), said.tone)


def _answers(row: dict[str, Any]) -> tuple[Cell, Cell]:
    quality, change = row["accuracy"], row["change"]
    percent = 100 if quality["low"] >= 0 and quality["high"] <= 1 else 1
    accuracy = Cell(
        f"{quality['value'] * percent:.1f}{' %' if percent == 100 else ''}",
        (f"{quality['low'] * percent:.1f} to {quality['high'] * percent:.1f}",),
    )
    if change is None:
        return accuracy, Cell("")
    between = f"{change['low'] * percent:+.1f} to {change['high'] * percent:+.1f}; {words.p_value(change['p'])}"
    tone = "bad" if change["low"] > 0 else ""
    return accuracy, Cell(f"{change['drop'] * percent:+.1f}".replace("-", "−"), (between.replace("-", "−"),), tone)


def subject_table(subjects: dict[str, list[dict[str, Any]]]) -> Table:
    """(subjects, (metric, a cell each)); from the second on with the change to the first."""
    taken = {name: {k: Measurement.of(f) for k, f in labelled(fs).items()} for name, fs in subjects.items()}
    metrics = dict.fromkeys(metric for named in taken.values() for metric in named)
    first = next(iter(taken.values()), {})
    return list(taken), [
        (
            metric,
            [_beside(named.get(metric), first.get(metric)) for named in taken.values()],
        )
        for metric in metrics
    ]


def _beside(m: Measurement | None, first: Measurement | None) -> Cell:
    if m is None:
        return Cell("–")
    text = words.value_of(m) + (" (estimate)" if m.estimated else "")
    if first is None or first is m:
        return Cell(text, (words.spread_of(m),))
    said, sure = compared(first, m)
    return Cell(text, (words.spread_of(m), said.words, sure), said.tone)
