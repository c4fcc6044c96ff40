"""The rows of the coverage table: read, merged, counted, and written as a page."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covered.judge import GIVEN, NOTHING, RIGHT, VERDICTS
from covered.peer import NO_HEADS, VERSION

Row = Mapping[str, Any]
OURS, PEER, DECLARED = "prunus", "torch-pruning", "torch-pruning, heads declared"
GOOD = (RIGHT, GIVEN)
HEADINGS = "model|verdict|worst error|removed|plan, s|cut and proof, s|peak, MiB|groups|result".split("|")
FAMILIES = {
    "torchvision": "torchvision, full size",
    "transformers": "transformers, small configurations",
    "diffusers": "diffusers, small configurations",
    "torch": "plain torch",
}
HEAD = f"""# Which models can be pruned

Random weights; half of every group's units by magnitude in one shot, groups whose removal changes a statistic
included. The check trusts no pruner: from the values of the smaller model's state alone it reads which slices of the
original were kept, sets all others to zero in a float64 copy of the original, and compares the results on fresh
inputs.

- **right**: the smaller model equals the zeroed original, relative error at most 1e-6 (1e-3 in single precision, for
  models of more than 100 million parameters).
- **right given kept statistics**: it does so where layer norms, group norms, means and variances count only what is
  not zero everywhere: a smaller layer norm can know nothing else.
- **nothing prunable**: no tensor became smaller. **refused**: an error that says why. **wrong**: other values or other
  shapes. **crashed**: the smaller model cannot be called, or an exception that nobody meant.

Torch-Pruning {VERSION} is called as its README, its examples and its own list of models call it, 60 s a model, under
the same check: once plainly, once with the heads of attention declared and its modules' sizes mended afterwards, as its
examples for transformers do. An empty cell means that this was not measured, or that there is no attention to declare.

"""


def read_log(log: Path) -> list[Row]:
    """The rows of a log; of several for one model the last."""
    lines = log.read_text().splitlines() if log.exists() else []
    return latest(json.loads(line) for line in lines if line)


def latest(rows: Iterable[Row]) -> list[Row]:
    return list({(row["tool"], row["model"]): row for row in rows}.values())


def write(log: Path, into: Path | None, page: Path | None) -> None:
    """Merge a log into a file of results, and write the page of it; without a file, of the log."""
    stored = json.loads(into.read_text()) if into is not None and into.exists() else []
    rows = sorted(latest([*stored, *read_log(log)]), key=lambda row: (row["tool"], row["model"]))
    if into is not None:
        into.parent.mkdir(parents=True, exist_ok=True)
        into.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    if page is not None:
        page.write_text(HEAD + "\n\n".join(sections(rows)) + "\n")


def sections(rows: Sequence[Row]) -> list[str]:
    """The counts of each tool first, then the models of each family side by side."""
    by_tool = {tool: {row["model"]: row for row in rows if row["tool"] == tool} for tool in (OURS, PEER, DECLARED)}
    parts = [counted(by_tool)]
    for family, title in FAMILIES.items():
        names = [name for name in by_tool[OURS] if name.startswith(f"{family}/")]
        if names:
            parts += [f"## {title}", beside(names, by_tool)]
    return parts


def counted(by_tool: Mapping[str, Mapping[str, Row]]) -> str:
    """Counts by verdict, and the median share removed where the result is right; the peer's better try last."""
    kept = {tool: [row for row in rows.values() if row["verdict"] != NO_HEADS] for tool, rows in by_tool.items()}
    tried = {tool: rows for tool, rows in kept.items() if rows}
    if PEER in tried:
        tried = {OURS: tried[OURS], PEER: tried[PEER], "torch-pruning, the better of both": best(by_tool)}
    lines = [["", "models", *VERDICTS, "median removed, right ones"]]
    lines.append(["---"] * len(lines[0]))
    for tool, rows in tried.items():
        counts = Counter(row["verdict"] for row in rows)
        lines.append([tool, str(len(rows)), *(str(counts[verdict] or "") for verdict in VERDICTS), median(rows)])
    return joined(lines)


def best(by_tool: Mapping[str, Mapping[str, Row]]) -> list[Row]:
    """Of two tries the right one; of two right ones that which removed more."""

    def value(row: Row) -> tuple[bool, bool, float]:
        return row["verdict"] in GOOD, row["verdict"] == NOTHING, row.get("removed", 0.0)

    tries = [[rows[name] for rows in (by_tool[PEER], by_tool[DECLARED]) if name in rows] for name in by_tool[PEER]]
    return [max((row for row in rows if row["verdict"] != NO_HEADS), key=value) for rows in tries]


def median(rows: Iterable[Row]) -> str:
    good = [row["removed"] for row in rows if row["verdict"] in GOOD]
    return f"{statistics.median(good):.0%}" if good else ""


def beside(names: Sequence[str], by_tool: Mapping[str, Mapping[str, Row]]) -> str:
    headings = [*HEADINGS, "ops without a rule", "Torch-Pruning", "with heads declared"]
    lines = [headings, ["---"] * len(headings)]
    for name in names:
        row = by_tool[OURS][name]
        unruled = ", ".join(op.removeprefix("aten.") for op in row.get("unruled", ()))
        peers = [short(by_tool[tool].get(name)) for tool in (PEER, DECLARED)]
        lines.append([name.partition("/")[2], *cells(row)[1:], unruled, *peers])
    return joined(lines)


def short(row: Row | None) -> str:
    if row is None or row["verdict"] == NO_HEADS:
        return ""
    return f"{row['verdict']}, {row['removed']:.0%} removed" if row["verdict"] in GOOD else str(row["verdict"])


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
    return joined([HEADINGS, ["---"] * len(HEADINGS), *(cells(row) for row in rows)])


def joined(lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(entries)} |" for entries in lines)


def summary(rows: Sequence[Row]) -> str:
    """How many of each verdict, and the median share of parameters that went where the result is right."""
    counts = Counter(row["verdict"] for row in rows)
    parts = [f"{count} {verdict}" for verdict, count in counts.most_common()]
    share = f"; median share of parameters removed {median(rows)}" if median(rows) else ""
    return f"{len(rows)} models: {', '.join(parts)}{share}."
