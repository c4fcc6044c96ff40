"""The page itself: facts into text, drawing and charts, then into one file whose scripts are named by their hashes."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from prunus.errors import ArtifactError
from prunus.report import words
from prunus.report.charts import Figure, choice, near, points_of, sampled, timings, tradeoff, weights
from prunus.report.compared import at
from prunus.report.draw import drawn
from prunus.report.facts import Facts, finite
from prunus.report.glance import baseline_table, cards, subject_table
from prunus.result import ZEROS

TEMPLATES = Path(__file__).parent / "templates"


def page(facts: Facts) -> str:
    """The HTML of a page. Raises `ArtifactError` without plotly or jinja2."""
    jinja2 = _extra("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=words.short, share=words.share, bytes=words.bytes_short)
    view = _VIEWS[facts["kind"]](facts)
    figures = view["figures"]
    heavy = _plotly() if figures else ""
    own = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    context: dict[str, Any] = {
        "facts": facts,
        **view,
        "style": (TEMPLATES / "page.css").read_text(encoding="utf-8"),
        "script": own,
        "plotly": heavy,
        "hashes": " ".join(f"'sha256-{_hash(text)}'" for text in (own, heavy) if text),
        "figures_json": embedded(figures),
        "facts_json": embedded(facts),
    }
    try:
        return str(environment.get_template(f"{facts['kind']}.html").render(context))
    except jinja2.UndefinedError as error:
        raise KeyError(str(error)) from error


def embedded(value: Any) -> str:
    """JSON that no HTML parser can take for anything else, and that JavaScript reads: no `<`, no NaN.

    >>> embedded({"a": "</script>", "b": float("nan")})
    '{"a": "\\\\u003c/script\\\\u003e", "b": null}'
    """
    text = json.dumps(finite(value), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plotly() -> str:
    return (Path(_extra("plotly").__file__).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _extra(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ArtifactError(f"A page needs {name}, which is missing. Try: pip install 'prunus[report]'.") from error


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _result(facts: Facts) -> dict[str, Any]:
    heads, rows = baseline_table(facts["rows"])
    timed = _timed({name: facts[name] for name in ("before", "after")})
    points, across = points_of(facts)
    drawable, far = near(points)
    figures = _some({"tradeoff": tradeoff(drawable, across), "latency": timings(timed)})
    choices = [
        {**found, "name": name or "all weights", "choice": choice(found)}
        for name, found in cast("dict[str, Facts]", facts["histograms"]).items()
    ]
    if choices:
        figures["weights"] = {**weights(choices[0]), "choices": [c["choice"] for c in choices]}
    return {
        "figures": figures,
        "cards": cards(facts),
        "drawing": drawn(facts["network"]),
        "baseline_heads": heads,
        "baselines": rows,
        "choices": choices,
        "points": points,
        "far": far,
        "across": across,
        "timed": timed,
        "sampled": sampled(timed),
        "zeros_note": ZEROS if facts["plan"]["zeros"] else "",
        "uncut_note": facts.get("uncut", ""),
        "settings": _settings(facts),
    }


def _settings(facts: Facts) -> list[tuple[str, str]]:
    """How the plan was made, and where the figures were got."""
    plan, made = facts["plan"], dict(facts["plan"]["provenance"])
    made.pop("torch", None)
    budget = made.pop("budget", None) or plan["budget"]
    pattern = made.pop("pattern", None) or plan["pattern"]
    found = [("pattern", pattern)]
    if budget:
        most = budget["at_most"]
        amount = f"{most * 100:.4g} % of the model as it was" if budget["relative"] else f"{most:,.6g}"
        found.append(("budget", f"{budget['metric']} at most {amount}"))
    return [*found, *((name.replace("_", " "), str(value)) for name, value in made.items()), *_origin(facts)]


def _origin(facts: Facts) -> list[tuple[str, str]]:
    where, command = facts["machine"], facts["command"]
    given = [("command", command)] if command else []
    versions = [(name, str(value)) for name, value in facts["versions"].items()]
    return [*given, ("day (UTC)", facts["day"]), *((name, str(value)) for name, value in where.items()), *versions]


def _scan(facts: Facts) -> dict[str, Any]:
    return {"figures": {}, "drawing": drawn(facts["network"]), "settings": _origin(facts)}


def _measure(facts: Facts) -> dict[str, Any]:
    subjects = facts["subjects"]
    timed = _timed(subjects)
    heads, rows = subject_table(subjects)
    return {
        "figures": _some({"latency": timings(timed)}),
        "heads": heads,
        "table": rows,
        "timed": timed,
        "sampled": sampled(timed),
        "settings": _origin(facts),
    }


def _timed(subjects: dict[str, list[Facts]]) -> dict[str, Facts]:
    """The latencies by subject; with batch and threads where there are several of a subject."""
    found: dict[str, Facts] = {}
    for name, taken in subjects.items():
        figures = [figure for figure in taken if figure["metric"] == "latency_ms"]
        found.update({f"{name}, {at(f)}" if len(figures) > 1 else name: f for f in figures})
    return found


def _some(figures: dict[str, Figure | None]) -> dict[str, Figure]:
    return {name: figure for name, figure in figures.items() if figure is not None}


_VIEWS = {"result": _result, "scan": _scan, "measure": _measure}
