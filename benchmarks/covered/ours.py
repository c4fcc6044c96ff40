"""What prunus does to a model: half of every group's units by magnitude, one shot, inexact groups included."""

from __future__ import annotations

import time
from typing import Any

from torch import nn

import prunus
from covered.entry import Call
from covered.judge import NOTHING, REFUSED, first_line


def prune(model: nn.Module, call: Call, row: dict[str, Any]) -> nn.Module | None:
    """The smaller model, or None with the verdict in the row: refused, or nothing to prune."""
    start = time.perf_counter()
    try:
        graph = prunus.trace(model, call)
        row["unruled"] = sorted({unruled.op for unruled in graph.unruled})
        row["train"] = graph.train is not None
        groups = prunus.group(graph)
        row["groups"] = len(groups)
        scores = prunus.score(model, groups, prunus.criteria.magnitude)
        plan = prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.5), scope="layer")
        row["plan_s"] = round(time.perf_counter() - start, 2)
        start = time.perf_counter()
        small = prunus.shrink(model, plan)
    except prunus.PrunusError as error:
        nothing = isinstance(error, prunus.errors.GroupError) and str(error).startswith("Nothing in this")
        row |= {"verdict": NOTHING if nothing else REFUSED, "why": first_line(error)}
        return None
    row["shrink_s"] = round(time.perf_counter() - start, 2)
    return small
