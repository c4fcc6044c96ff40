"""One row of the table: a model is made, pruned by one of the two tools and judged, in this process."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
import warnings
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from covered import plain_models, torchvision_models, transformers_models
from covered.entry import Entry
from covered.judge import CRASHED, first_line, judge
from covered.kept import redraw, removed, untied

TOOLS = ("prunus", "torch-pruning", "torch-pruning, heads declared")


def all_entries() -> dict[str, Entry]:
    """Every model of the table by its title, smaller families first."""
    families = (plain_models, transformers_models, torchvision_models)
    return {entry.title: entry for family in families for entry in family.entries()}


def row_of(tool: str, title: str) -> dict[str, Any]:
    """The whole row. An exception that no library raises on purpose is a verdict too."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    row: dict[str, Any] = {"tool": tool, "model": title}
    start = time.perf_counter()
    try:
        _fill(row, tool, all_entries()[title])
    except Exception as error:  # noqa: BLE001, a table of what goes wrong wants all of it
        row |= {"verdict": CRASHED, "why": f"{first_line(error)} at {_place(error)}"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    return row | {"total_s": round(time.perf_counter() - start, 1), "peak_mib": round(peak)}


def _place(error: BaseException) -> str:
    """The file and line that raised, without the folders around the package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    parts = trace.tb_frame.f_code.co_filename.split("/")
    return f"{'/'.join(parts[-2:])}:{trace.tb_lineno}"


def _fill(row: dict[str, Any], tool: str, entry: Entry) -> None:
    torch.manual_seed(0)
    model = entry.make().eval()
    redraw(model)
    row["params"] = sum(p.numel() for p in model.parameters())
    small = _pruned(row, tool, model, entry)
    if small is None:
        return
    row["removed"] = round(removed(model, small), 4)
    row["result"] = type(small).__name__
    row["own"] = type(small) is type(model)
    row["ties_lost"] = len(untied(model, small))
    calls = [entry.call(2) for _ in range(entry.calls)]
    verdict = judge(model, small, calls)
    row |= {key: value for key, value in asdict(verdict).items() if value not in (None, math.inf)}


def _pruned(row: dict[str, Any], tool: str, model: nn.Module, entry: Entry) -> nn.Module | None:
    if tool == "prunus":
        from covered import ours

        return ours.prune(model, entry.call(2), row)
    from covered import peer

    return peer.prune(model, row, entry, heads=tool != TOOLS[1])
