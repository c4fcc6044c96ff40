"""`report`: one self-contained HTML page about a result, a saved directory, a scanned model or measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from prunus.errors import ArtifactError
from prunus.graph.graph import Graph
from prunus.graph.groups import Groups
from prunus.report.facts import Baseline, Facts, facts_of_measurements, facts_of_result, facts_of_scan
from prunus.report.page import page
from prunus.report.read import damage_named, read_facts
from prunus.result import Result
from prunus.types import Measurement


def report(
    what: Result | str | Path | Graph | Groups | Mapping[str, Sequence[Measurement]],
    path: str | Path,
    *,
    rows: Mapping[str, Baseline] | None = None,
    command: str | None = None,
) -> Path:
    """Write one HTML file that loads nothing from anywhere; returns its path.

    Args:
        what: a `Result`, or the directory where one was saved: what changed and what it cost. A `Graph` or its
            `Groups`: what can be pruned, what goes together, what is fixed and why. Measurements by the name of the
            model, the one to compare with first: models side by side.
        path: the file; its folder is made where there is none. For a folder that exists, `report.html` in it.
        rows: baselines of a result, the dense model first, each with `figures` (by metric) and `correct`, one score a
            sample (n,). A saved directory has its own.
        command: what was run, for the page to say so.

    Raises `ArtifactError` for a directory that holds no readable facts, and where plotly or jinja2, which are the
    extra `report`, are not installed.
    """
    made = Path(path)
    made = made / "report.html" if made.is_dir() else made
    saved = isinstance(what, str | Path)
    with damage_named(what) if saved else nullcontext():
        text = page(_facts(what, rows, command))
    made.parent.mkdir(parents=True, exist_ok=True)
    part = made.with_name(made.name + ".part")
    part.write_text(text, encoding="utf-8", errors="replace")
    part.replace(made)
    return made


def _facts(
    what: Result | str | Path | Graph | Groups | Mapping[str, Sequence[Measurement]],
    rows: Mapping[str, Baseline] | None,
    command: str | None,
) -> Facts:
    if rows is not None and not isinstance(what, Result):
        raise ArtifactError(
            f"rows= belong to a Result, and {type(what).__name__} is none. A saved directory holds the rows that "
            "save(result, directory, rows=rows) wrote."
        )
    if isinstance(what, Result):
        return facts_of_result(what, rows, command)
    if isinstance(what, str | Path):
        return {**read_facts(what), **({"command": command} if command is not None else {})}
    if isinstance(what, Graph | Groups):
        return facts_of_scan(what, command)
    return facts_of_measurements(what, command)
