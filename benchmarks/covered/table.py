"""The rows of the coverage table: read, merged, counted, and written as a page."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covered.judge import GIVEN, RIGHT, VERDICTS

Row = Mapping[str, Any]
HEADINGS = "model|verdict|worst error|removed|plan, s|cut and proof, s|peak, MiB|groups|result".split("|")


def read_log(log: Path) -> list[Row]:
    """The rows of a log; of several for one model the last."""
    lines = log.read_text().splitlines() if log.exists() else []
    rows = [json.loads(line) for line in lines if line]
    return list({(row["tool"], row["model"]): row for row in rows}.values())


def line(row: Row) -> str:
    """One row on a terminal."""
    return " ".join(str(cell) for cell in (f"{row['model']:<48}", *cells(row)[1:], row.get("why", "")))


def cells(row: Row) -> list[str]:
    error = row.get("error")
    return [
        row["model"],
        row["verdict"],
        "" if error is None else f"{error:.0e}",
        f"{row['removed']:.0%}" if "removed" in row else "",
        *(str(row.get(key, "")) for key in ("plan_s", "shrink_s", "peak_mib", "groups")),
        row.get("result", ""),
    ]


def markdown(rows: Iterable[Row]) -> str:
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(entries)} |" for entries in lines)


def summary(rows: Sequence[Row]) -> str:
    """How many of each verdict, and the median share of parameters that went where the result is right."""
    counts = Counter(row["verdict"] for row in rows)
    good = [row["removed"] for row in rows if row["verdict"] in (RIGHT, GIVEN)]
    parts = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
    median = f"; median share of parameters removed {statistics.median(good):.0%}" if good else ""
    return f"{len(rows)} models: {', '.join(parts)}{median}."
