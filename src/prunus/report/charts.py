"""The charts of a page as plotly figures in plain JSON; colors are names (`@after`) that the page's theme fills in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any, TypeAlias

from prunus.report import words
from prunus.report.facts import Facts
from prunus.report.histogram import BINS
from prunus.types import Measurement

Figure: TypeAlias = dict[str, Any]
SERIES = ("@before", "@three", "@four", "@five", "@six", "@seven")
SYMBOLS = ("circle", "square", "triangle-up", "cross", "star", "hexagon")
FAR = 4.0
"""So many times as far below the middle as the best is above it: such a point is told, not drawn."""
ENOUGH = 10
SERIES_AT_MOST = 4
TIME_BINS = 60
TAIL = 0.97
"""The share of calls, the fastest, that the axis of times covers."""


def said(text: str) -> str:
    """A name for plotly, which reads tags and entities in its labels."""
    return escape(text, quote=False)


def tradeoff(points: Sequence[Mapping[str, Any]], across: str) -> Figure | None:
    """Accuracy against MACs: a point with its interval a model; the pruned one, the last, stands out."""
    if len(points) < 2:
        return None
    percent = 100 if all(p["low"] >= 0 and p["high"] <= 1 for p in points) else 1
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": said(point["name"]),
            "x": [point["x"]],
            "y": [point["value"] * percent],
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [(point["high"] - point["value"]) * percent],
                "arrayminus": [(point["value"] - point["low"]) * percent],
                "thickness": 1.5,
                "width": 5,
                "color": color,
            },
            "marker": {"size": 12, "symbol": symbol, "color": color},
            "hovertemplate": "%{x:.3s} MACs, %{y:.1f}<extra></extra>",
        }
        for point, color, symbol in _styled(points)
    ]
    axis = "accuracy, %" if percent == 100 else "score"
    layout = _layout(across, axis, xaxis={"rangemode": "tozero", "tickformat": "~s"})
    return {"data": data, "layout": {**layout, "height": 330 + 20 * len(points)}}


def _styled(points: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str, str]]:
    last = len(points) - 1
    styles = [(SERIES[i % len(SERIES)], SYMBOLS[i % len(SYMBOLS)]) for i in range(last)] + [("@after", "diamond")]
    return [(point, *style) for point, style in zip(points, styles, strict=True)]


def near(points: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """(points to draw, points so far below most others that drawing them would hide how those differ)."""
    if len(points) < 3:
        return list(points), []
    middle = median(p["low"] for p in points)
    floor = middle - FAR * (max(p["high"] for p in points) - middle)
    return [p for p in points if p["value"] >= floor], [p for p in points if p["value"] < floor]


def points_of(facts: Facts) -> tuple[list[dict[str, Any]], str]:
    """(points, what is across) of the baselines, else of the model before and after; none without accuracy."""
    zeros = facts["plan"]["zeros"]
    if facts["rows"]:
        metric = "effective_macs" if "effective_macs" in facts["rows"][0]["figures"] else "macs"
        rows = [row for row in facts["rows"] if metric in row["figures"]]
        points = [{"name": r["name"], "x": _a_sample(r["figures"][metric]), **r["accuracy"]} for r in rows]
    else:
        metric, points = "effective_macs" if zeros else "macs", list[dict[str, Any]]()
        for name in ("before", "after"):
            taken = {f["metric"]: f for f in facts[name]}
            if metric in taken and "accuracy" in taken:
                value, spread = taken["accuracy"]["value"], taken["accuracy"]["spread"]
                low, high = spread or (value, value)
                points.append({"name": name, "x": _a_sample(taken[metric]), "value": value, "low": low, "high": high})
    across = "effective MACs a sample" if metric == "effective_macs" else "MACs a sample"
    return points, across


def _a_sample(figure: Mapping[str, Any]) -> float:
    return figure["value"] / (figure["batch"] or 1)


def sampled(named: Mapping[str, Mapping[str, Any]]) -> bool:
    """Are there enough single calls for histograms, and few enough of these to tell them apart?"""
    return len(named) <= SERIES_AT_MOST and all(len(figure.get("samples", ())) >= ENOUGH for figure in named.values())


def timings(named: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Latencies as histograms over common bins; as medians with quartiles where the single calls are not known."""
    if not named:
        return None
    taken = {name: Measurement.of(figure) for name, figure in named.items()}
    if not sampled(named):
        return _quartiles(taken)
    samples = {name: sorted(one.samples) for name, one in taken.items()}
    low = min(times[0] for times in samples.values())
    high = max(times[min(int(TAIL * len(times)), len(times) - 1)] for times in samples.values())
    width = (high - low) / TIME_BINS or 1.0
    data = [
        _step([low + i * width for i in range(TIME_BINS + 1)], _counted(times, low, width), name, i, len(samples))
        for i, (name, times) in enumerate(samples.items())
    ]
    lines = [_line(taken[name].value, i, len(taken)) for i, name in enumerate(taken)]
    return {"data": data, "layout": _layout("one call, ms", "share of calls, %", shapes=lines)}


def _counted(times: Sequence[float], low: float, width: float) -> list[float]:
    counts = [0] * TIME_BINS
    for time in times:
        place = int((time - low) / width)
        if place <= TIME_BINS:
            counts[min(place, TIME_BINS - 1)] += 1
    return [count / len(times) * 100 for count in counts]


def _color(index: int, many: int) -> str:
    return "@after" if index == many - 1 and many > 1 else SERIES[index % len(SERIES)]


def _dash(index: int, many: int) -> str:
    return "solid" if index == many - 1 else ("dot", "dash", "dashdot")[index % 3]


def _step(edges: Sequence[float], heights: Sequence[float], name: str, index: int, many: int) -> Figure:
    color = _color(index, many)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": said(name),
        "x": list(edges),
        "y": [*heights, 0],
        "fill": "tozeroy",
        "fillcolor": color + "-soft",
        "line": {"shape": "hv", "width": 2, "color": color, "dash": _dash(index, many)},
        "hoverinfo": "skip",
    }


def _line(at: float, index: int, many: int) -> Figure:
    return {
        "type": "line",
        "x0": at,
        "x1": at,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": _color(index, many), "width": 1.5, "dash": _dash(index, many)},
    }


def _quartiles(taken: Mapping[str, Measurement]) -> Figure:
    many = len(taken)
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": said(name),
            "x": [m.value],
            "y": [said(name)],
            "marker": {"size": 11, "color": _color(i, many), "symbol": SYMBOLS[i % len(SYMBOLS)]},
            "error_x": _bars(m, _color(i, many)),
            "hovertemplate": "%{x:.3f} ms<extra></extra>",
        }
        for i, (name, m) in enumerate(taken.items())
    ]
    layout = _layout("median of a call with quartiles, ms", "", xaxis={"rangemode": "tozero"})
    layout["yaxis"] = {**layout["yaxis"], "showticklabels": False, "autorange": "reversed"}
    return {"data": data, "layout": {**layout, "height": 170 + 50 * many}}


def _bars(m: Measurement, color: str) -> Figure:
    low, high = m.spread or (m.value, m.value)
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - m.value],
        "arrayminus": [m.value - low],
        "thickness": 2,
        "width": 6,
        "color": color,
    }


def weights(histogram: Mapping[str, Any]) -> Figure:
    """The weights that are not zero, before and after, over the same bins."""
    width = 2 * histogram["limit"] / BINS
    edges = [float(f"{i * width - histogram['limit']:.5g}") for i in range(BINS + 1)]
    data = [_step(edges, histogram[name]["counts"], name, i, 2) for i, name in enumerate(("before", "after"))]
    return {"data": data, "layout": _layout("weight", "how many", yaxis={"tickformat": "~s"})}


def choice(histogram: Mapping[str, Any]) -> Figure:
    """What differs between the charts of two tensors: the bins, the counts, and what is said of zeros."""
    traces = weights(histogram)["data"]
    return {"said": zeros_said(histogram), "x": traces[0]["x"], "y": [trace["y"] for trace in traces]}


def zeros_said(histogram: Mapping[str, Any]) -> str:
    """What the histogram leaves out, in words."""
    parts: list[str] = []
    for name in ("before", "after"):
        spread = histogram[name]
        part = spread["zeros"] / max(spread["total"], 1)
        zeros = f"{words.short(spread['zeros'])} of {words.short(spread['total'])} are zero ({part * 100:.1f} %)"
        beyond = f", {spread['beyond']:,} lie beyond the axis" if spread["beyond"] else ""
        parts.append(f"{name}: {zeros}{beyond}")
    return "; ".join(parts) + "."


def _layout(across: str, up: str, **more: Any) -> Figure:
    axis = {"gridcolor": "@grid", "linecolor": "@grid", "zeroline": False, "automargin": True, "fixedrange": True}
    layout: Figure = {
        "height": 340,
        "margin": {"l": 48, "r": 12, "t": 12, "b": 52},
        "paper_bgcolor": "@clear",
        "plot_bgcolor": "@clear",
        "font": {"color": "@ink", "size": 13},
        "dragmode": False,
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemclick": False},
        "xaxis": {**axis, "title": {"text": across, "standoff": 10}},
        "yaxis": {**axis, "title": {"text": up, "standoff": 8}},
    }
    for name, value in more.items():
        layout[name] = {**layout[name], **value} if name in layout else value
    return layout
