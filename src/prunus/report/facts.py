"""The facts of a page as one plain JSON document; whatever a page shows is read from it, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from prunus.graph.graph import Graph
from prunus.graph.groups import Group, Groups
from prunus.report.layers import cut_of, layer_rows, network
from prunus.report.machine import machine, today, versions
from prunus.result import Result
from prunus.statistics import accuracy_interval, paired
from prunus.types import Measurement

Facts: TypeAlias = dict[str, Any]
FORMAT = "prunus 1"


class Baseline(Protocol):
    """One model of a comparison, such as `prunus.tasks.rows.Row`: its figures, and one score a sample (n,)."""

    @property
    def figures(self) -> Mapping[str, Measurement]: ...
    @property
    def correct(self) -> Tensor: ...


def facts_of_result(result: Result, rows: Mapping[str, Baseline] | None = None, command: str | None = None) -> Facts:
    """What was done, what came of it, and the baselines beside it; the first of `rows` is the dense model."""
    cut = cut_of(result.graph, result.plan)
    return {
        **_head("result", result.graph.model_class, command),
        "before": [figure_facts(m) for m in result.before],
        "after": [figure_facts(m) for m in result.after],
        "change": None if result.change is None else asdict(result.change),
        "history": [dict(entry) for entry in result.history],
        "plan": _plan(result),
        "uncut": result.uncut,
        "rows": _rows(rows or {}),
        "network": network(result.graph, cut),
        "layers": layer_rows(result.graph, cut),
        "histograms": {name: _plain(asdict(found)) for name, found in result.histograms.items()},
    }


def facts_of_scan(model: Graph | Groups, command: str | None = None) -> Facts:
    """What can be pruned, what goes together, and what is fixed and why."""
    groups = model if isinstance(model, Groups) else None
    graph = groups.graph if groups is not None else model
    assert isinstance(graph, Graph)
    cut = cut_of(graph, None, groups)
    reasons: dict[str, list[str]] = {}
    for where, why in graph.fixed.items():
        reasons.setdefault(why, []).append(where)
    return {
        **_head("scan", graph.model_class, command),
        "pattern": None if groups is None else str(groups.pattern),
        "groups": [_group(g) for g in groups or ()],
        "ties": [list(tie) for tie in (groups.ties if groups is not None else ())],
        "fixed": reasons,
        "unruled": sorted({u.op for u in graph.unruled}),
        "unreached": list(graph.unreached),
        "network": network(graph, cut),
        "layers": layer_rows(graph, cut),
    }


def facts_of_measurements(subjects: Mapping[str, Sequence[Measurement]], command: str | None = None) -> Facts:
    """Several models side by side; the first is what the others are compared with."""
    figures = {name: [figure_facts(m) for m in taken] for name, taken in subjects.items()}
    return {**_head("measure", ", ".join(subjects), command), "subjects": figures}


def figure_facts(m: Measurement) -> dict[str, Any]:
    """A measurement as JSON values; `Measurement.of` reads it again."""
    return _plain(asdict(m))


def finite(value: Any) -> Any:
    """Values as JSON can hold them: what is not finite becomes null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _head(kind: str, name: str, command: str | None) -> Facts:
    return {
        "format": FORMAT,
        "kind": kind,
        "name": name,
        "command": command,
        "day": today(),
        "machine": machine(),
        "versions": versions(),
    }


def _plan(result: Result) -> dict[str, Any]:
    plan = result.plan
    return {
        "pattern": str(plan.groups.pattern),
        "zeros": plan.groups.laid,
        "budget": None if plan.budget is None else dict(vars(plan.budget)),
        "costs": {name: list(cost) for name, cost in plan.costs.items()},
        "provenance": _plain(dict(plan.provenance)),
    }


def _rows(rows: Mapping[str, Baseline]) -> list[dict[str, Any]]:
    first = next(iter(rows.values()), None)
    found: list[dict[str, Any]] = []
    for name, row in rows.items():
        low, high = accuracy_interval(row.correct)
        quality = {"value": float(row.correct.double().mean()), "low": low, "high": high, "n": row.correct.numel()}
        change = None if first is None or row is first else asdict(paired(first.correct, row.correct))
        figures = {metric: figure_facts(m) for metric, m in row.figures.items()}
        found.append({"name": name, "figures": figures, "accuracy": quality, "change": change})
    return found


def _group(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
        "size": group.size,
        "exact": group.exact,
        "why": group.why,
        "makes": [f"{m.state}[{m.dim}]" for m in group.producers],
        "read_by": [f"{m.state}[{m.dim}]" for m in group.members if m.consumer],
    }


def _plain(value: Any) -> Any:
    """The same with lists for tuples and strings for what JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
