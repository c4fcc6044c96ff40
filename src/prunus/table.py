"""Tables for the terminal: the rows of a comparison, and the groups of a model as a tree by module."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from prunus.graph.graph import Graph
from prunus.graph.groups import Group, Groups
from prunus.result import shown
from prunus.statistics import accuracy_interval
from prunus.tasks.rows import DENSE, Row
from prunus.types import Measurement

_COUPLED_SHOWN = 6


def comparison(rows: Mapping[str, Row], title: str) -> Table:
    """One row a model: costs, latency beside the dense model's, accuracy with interval, paired drop with interval."""
    table = Table(title=escape(title), title_justify="left")
    costs = [name for name in _COSTS if name in rows[DENSE].figures]
    shown_as = [_COSTS[name][0] for name in costs]
    for heading in ("model", *shown_as, *_TIMES, "accuracy, %", "drop, points", "p"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=heading == "model")
    for name, row in rows.items():
        cells = [_COSTS[cost][1](row.figures[cost]) for cost in costs]
        times = [cell for metric in ("latency_ms", "onnx_latency_ms") for cell in _latency(row, metric)]
        table.add_row(escape(name), *cells, *times, *_quality(row, rows[DENSE], name == DENSE))
    return table


def _an_image(m: Measurement) -> str:
    return f"{m.value / (m.batch or 1):,.0f}"


def _kibibytes(m: Measurement) -> str:
    return f"{m.value / 1024:,.0f}"


_TIMES = ("torch, ms", "of dense", "ONNX, ms", "of dense")
_COSTS: Mapping[str, tuple[str, Callable[[Measurement], str]]] = {
    "params": ("params", shown),
    "nonzeros": ("nonzeros", shown),
    "macs": ("MACs", _an_image),
    "effective_macs": ("effective MACs", _an_image),
    "bytes": ("KiB", _kibibytes),
    "compressed_bytes": ("KiB, gzip", _kibibytes),
}
"""Metric -> its heading, and how it is written."""


def _latency(row: Row, metric: str) -> tuple[str, str]:
    latency, dense = row.figures[metric], row.figures[f"dense_{metric}"]
    low, high = latency.spread or (latency.value, latency.value)
    ratio = latency.value / dense.value
    of_dense = f"{ratio:.2f}x" if ratio <= 1 else f"[red]{ratio:.2f}x[/red]"
    return f"{latency.value:.2f} ({low:.1f}-{high:.1f})", of_dense


def _quality(row: Row, dense: Row, is_dense: bool) -> tuple[str, str, str]:
    low, high = accuracy_interval(row.correct)
    accuracy = f"{row.correct.mean().item() * 100:.1f} ({low * 100:.1f} to {high * 100:.1f})"
    if is_dense:
        return accuracy, "", ""
    change = row.against(dense)
    drop = f"{change.drop * 100:+.2f} ({change.low * 100:+.2f} to {change.high * 100:+.2f})"
    return accuracy, drop, f"{change.p:.2g}"


def group_tree(groups: Groups) -> Tree:
    """Groups under the modules that make them: size, kind, and what is coupled."""
    units = sum(g.size for g in groups)
    root = Tree(f"[bold]{escape(groups.graph.model_class)}[/bold]: {len(groups)} groups, {units} units")
    branches: dict[str, Tree] = {"": root}
    for group in groups:
        path = group.name.partition(":")[0].partition("#")[0]
        parent = _branch(branches, path.rpartition(".")[0])
        note = "" if group.exact else f"  [yellow]inexact: {escape(group.why)}[/yellow]"
        name = escape(group.name.removeprefix(path.rpartition(".")[0] + "."))
        leaf = parent.add(f"[bold]{name}[/bold]  {group.size} {group.kind}{note}")
        leaf.add(f"[dim]{escape(_coupled(group))}[/dim]")
    return root


def _branch(branches: dict[str, Tree], path: str) -> Tree:
    if path not in branches:
        above, _, name = path.rpartition(".")
        branches[path] = _branch(branches, above).add(escape(name))
    return branches[path]


def _coupled(group: Group) -> str:
    """The state a unit owns slices of: what makes it, then what reads it."""
    made = [f"{m.state}[{m.dim}]" for m in group.producers]
    read = [f"{m.state}[{m.dim}]" for m in group.members if m.consumer]
    parts = [_some(made), *([f"read by {_some(read)}"] if read else [])]
    return " · ".join(part for part in parts if part)


def _some(names: list[str]) -> str:
    more = len(names) - _COUPLED_SHOWN
    return ", ".join(names[:_COUPLED_SHOWN]) + (f" and {more} more" if more > 0 else "")


def fixed_table(graph: Graph) -> Table:
    """What cannot be pruned, and why: one row a reason."""
    table = Table(title="fixed", title_justify="left")
    table.add_column("why")
    table.add_column("where")
    reasons: dict[str, list[str]] = {}
    for where, why in graph.fixed.items():
        reasons.setdefault(why, []).append(where)
    for why, where in reasons.items():
        table.add_row(escape(why), escape(_some(where)))
    return table
