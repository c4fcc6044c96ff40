"""What a pruning run gives back: the model, the plan that made it, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from prunus.graph.graph import Graph
from prunus.plan import Plan
from prunus.statistics import PairedChange
from prunus.types import Measurement

ZEROS = (
    "Zeros alone make no dense runtime faster and no raw file smaller: latency and bytes are shown as measured. For "
    "speed remove channels (pattern=Channel()); zeros pay in compressed files, and where kernels are made for them."
)


@dataclass(frozen=True, eq=False)
class Result:
    """`before` and `after` hold the same metrics of the dense and the pruned model, measured side by side.

    `change` compares the per-sample scores of both, where `evaluate` gave them. `history` has an entry a round.
    """

    model: nn.Module
    graph: Graph
    plan: Plan
    before: tuple[Measurement, ...]
    after: tuple[Measurement, ...]
    change: PairedChange | None = None
    history: tuple[Mapping[str, Any], ...] = field(default=())

    def __str__(self) -> str:
        rows = [("", "before", "after", "change")]
        for old, new in zip(self.before, self.after, strict=True):
            rows.append((old.metric, shown(old), shown(new), _change(old, new)))
        lines = aligned(rows)
        if self.change is not None:
            lines.append(drop(self.change))
        if self.plan.groups.laid:
            lines.append(ZEROS)
        return "\n".join(lines)


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
    if m.spread is not None:
        return f"{m.value:.3f} {m.unit} [{m.spread[0]:.3f}, {m.spread[1]:.3f}]{mark}"
    return f"{m.value:,.0f}{mark}"


def _change(old: Measurement, new: Measurement) -> str:
    if old.metric == "accuracy":
        shares = min(old.value, new.value) >= 0 and max(old.value, new.value) <= 1
        return f"{(new.value - old.value) * 100:+.1f} points" if shares else f"{new.value - old.value:+.4g}"
    return f"{new.value / old.value:.3f}x" if old.value else "-"


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
