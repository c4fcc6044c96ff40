"""What pruning gives back: the model, the plan that made it, and what was measured before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.graph import Graph
from prunus.graph.interpret import GraphModel
from prunus.measure import measure
from prunus.measure.untouched import untouched
from prunus.plan import Plan
from prunus.report.histogram import Histogram, histograms
from prunus.statistics import PairedChange, compare_timings, paired
from prunus.types import Evaluate, Measurement, Progress

REPORTED = ("params", "macs", "bytes", "latency_ms")
ZEROS_TOO = ("params", "nonzeros", "macs", "effective_macs", "bytes", "compressed_bytes", "latency_ms")
_ROUNDS_AT_LEAST = 6
"""Fewer have no interval of 95 %."""
ZEROS = (
    "Zeros alone make no dense runtime faster and no raw file smaller: latency and bytes are shown as measured. For "
    "speed remove channels (pattern=Channel()); zeros pay in compressed files, and where kernels are made for them."
)


@dataclass(frozen=True, eq=False)
class Result:
    """`before` and `after` hold the same metrics of the dense and the pruned model, measured side by side.

    `change` compares the per-sample scores of both, where `evaluate` gave them. `history` has an entry a round.
    Printed, the change of a latency is that of `statistics.compare_timings`, with its interval: round by round, so that
    it may differ a little from the ratio of the two medians beside it.
    `histograms` holds those of the weights of both, by name; the empty name is all of them together.
    """

    model: nn.Module
    graph: Graph
    plan: Plan
    before: tuple[Measurement, ...]
    after: tuple[Measurement, ...]
    change: PairedChange | None = None
    history: tuple[Mapping[str, Any], ...] = field(default=())
    histograms: Mapping[str, Histogram] = field(default_factory=dict[str, Histogram], repr=False)

    @property
    def uncut(self) -> str:
        """Says so where the user's class could not be cut."""
        name = self.graph.model_class
        if not isinstance(self.model, GraphModel) or name == GraphModel.__name__:
            return ""
        return (
            f"The code of {name} computes sizes in a way that no integer of it expresses, so the result is its graph "
            "(GraphModel), run operation by operation: in a small network that takes longer. Export it for speed."
        )

    def __str__(self) -> str:
        rows = [("", "before", "after", "change")]
        for old, new in zip(self.before, self.after, strict=True):
            rows.append((old.metric, shown(old), shown(new), _change(old, new)))
        lines = aligned(rows)
        if self.change is not None:
            lines.append(drop(self.change))
        if self.plan.groups.laid:
            lines.append(ZEROS)
        if self.uncut:
            lines.append(self.uncut)
        return "\n".join(lines)


def compare(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    *,
    evaluate: Evaluate | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    progress: Progress | None = None,
) -> Result:
    """Measure a model before and after, side by side on the first example of the traced graph.

    What `prune` ends with; call it after a loop of your own, with `small = shrink(model, plan)` trained again, or a
    copy of the model pruned by `mask` or `Gradual`. `evaluate(model)` gives one score a sample (n,), for intervals and
    a paired test, or a bare number.

    Raises `GroupError` when the plan is about a model that was not traced, `MeasureError` for wrong scores.
    """
    inputs = plan.graph.examples[0]
    metrics = ZEROS_TOO if plan.groups.laid else REPORTED
    taken = measure(small, inputs, metrics, against=model, progress=progress)
    after, before = taken[: len(metrics)], taken[len(metrics) :]
    spread = histograms(model, small)
    if evaluate is None:
        return Result(small, plan.graph, plan, before, after, None, tuple(history), spread)
    scores = [_scores(evaluate, m) for m in (model, small)]
    quality = [
        measure(m, inputs, "accuracy", evaluate=lambda _m, s=s: s)[0]
        for m, s in zip((model, small), scores, strict=True)
    ]
    both = [s for s in scores if isinstance(s, Tensor) and s.ndim == 1]
    change = paired(both[0], both[1]) if len(both) == 2 else None
    both_sides = (*before, quality[0]), (*after, quality[1])
    return Result(small, plan.graph, plan, *both_sides, change, tuple(history), spread)


def _scores(evaluate: Evaluate, model: nn.Module) -> Tensor | float:
    with untouched(model), torch.no_grad():
        return evaluate(model)


def shown(m: Measurement) -> str:
    """A figure with its spread, in readable units.

    >>> shown(Measurement("accuracy", 0.975, "share", spread=(0.96, 0.98)))
    '97.5 % [96.0, 98.0]'
    >>> shown(Measurement("params", 1234567, "parameters"))
    '1,234,567'
    """
    mark = " (estimate)" if m.estimated else ""
    if m.metric == "accuracy" and 0 <= m.value <= 1:
        spread = f" [{m.spread[0] * 100:.1f}, {m.spread[1] * 100:.1f}]" if m.spread else ""
        return f"{m.value * 100:.1f} %{spread}{mark}"
    write = _WRITTEN.get(m.unit, "{:.3f}").format
    if m.spread is not None:
        return f"{write(m.value)} {m.unit} [{write(m.spread[0])}, {write(m.spread[1])}]{mark}"
    return f"{write(m.value)} {m.unit}{mark}" if m.unit == "J" else f"{m.value:,.0f}{mark}"


_WRITTEN = {"bytes": "{:,.0f}", "samples/s": "{:,.1f}", "J": "{:.3g}"}
"""Units whose figures are too large, or too small, for three decimals."""


def _change(old: Measurement, new: Measurement) -> str:
    if old.metric == "accuracy":
        shares = min(old.value, new.value) >= 0 and max(old.value, new.value) <= 1
        return f"{(new.value - old.value) * 100:+.1f} points" if shares else f"{new.value - old.value:+.4g}"
    ratio = f"{new.value / old.value:.3f}x" if old.value else "-"
    if len(old.samples) != len(new.samples) or len(new.samples) < _ROUNDS_AT_LEAST:
        return ratio
    timings = compare_timings(old.samples, new.samples)
    return f"{timings.ratio:.3f}x [{timings.low:.3f}, {timings.high:.3f}]"


def drop(change: PairedChange) -> str:
    """The paired change in words."""
    test = "McNemar's exact p" if change.binary else "paired t, p"
    return (
        f"drop {change.drop * 100:+.2f} points, 95 % interval [{change.low * 100:+.2f}, {change.high * 100:+.2f}], "
        f"n = {change.n}, {test} = {change.p:.3g}"
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of a plain table."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
