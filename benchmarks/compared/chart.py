"""Curves as one SVG: a line a method, its lowest and highest seed as a bar, the dense network as a band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log
from statistics import mean

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 440, 58, 150, 34, 50
COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#9c6b4e", "#555555")
SHOWN = 26.0
"""Points of accuracy below the band down to which the axis goes; what is lower leaves the picture at its foot."""


@dataclass(frozen=True)
class Line:
    """(share of weights kept, accuracy of each seed in percent) from many to few."""

    name: str
    points: Sequence[tuple[float, Sequence[float]]]


def drawn(lines: Sequence[Line], band: Sequence[float]) -> str:
    kept = sorted({k for line in lines for k, _ in line.points}, reverse=True)
    top = ceil(max([*band, *(v for line in lines for _, values in line.points for v in values)]) + 0.5)
    low = floor(max(top - SHOWN, min(v for line in lines for _, values in line.points for v in values)))
    across = {k: LEFT + (WIDTH - LEFT - RIGHT) * (log(kept[0] / k) / log(kept[0] / kept[-1])) for k in kept}

    def down(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - max(value, low)) / (top - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *_axes(kept, across, range(low + (top - low) % 5, top + 1, 5), down),
    ]
    if band:
        height = max(2.0, down(min(band)) - down(max(band)))
        parts.append(
            f'<rect x="{LEFT}" y="{down(max(band)):.1f}" width="{WIDTH - LEFT - RIGHT}" height="{height:.1f}" '
            'fill="#000000" opacity="0.15"/>'
        )
    last = [mean(line.points[-1][1]) if line.points else 0.0 for line in lines]
    ends = _apart([down(value) + max(0.0, low - value) / 100 for value in last])  # those below the foot in their order
    for line, color, end in zip(lines, COLORS, ends, strict=False):
        parts += _line(line, color, across, down, end)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(line: Line, color: str, across: dict[float, float], down: Callable[[float], float], end: float) -> list[str]:
    place = [(across[k], down(mean(v)), down(min(v)), down(max(v))) for k, v in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in place)
    bars = [f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{color}"/>' for x, _, low, high in place]
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y, _, _ in place]
    label = f'<text x="{WIDTH - RIGHT + 10}" y="{end + 4:.1f}" fill="{color}">{escape(line.name)}</text>'
    return [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>', *bars, *dots, label]


def _axes(
    kept: Sequence[float], across: dict[float, float], ticks: Sequence[int], down: Callable[[float], float]
) -> list[str]:
    foot, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    rows = [
        f'<path d="M{LEFT} {down(t):.1f}H{right}" stroke="#dddddd"/>'
        f'<text x="{LEFT - 8}" y="{down(t) + 4:.1f}" text-anchor="end">{t}</text>'
        for t in ticks
    ]
    columns = [
        f'<text x="{across[k]:.1f}" y="{foot + 20}" text-anchor="middle">{100 * (1 - k):g} %</text>' for k in kept
    ]
    middle = (LEFT + right) / 2
    words = f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">weights that are zero</text>'
    return [*rows, *columns, words, f'<text x="6" y="{TOP - 16}">accuracy, %</text>']


def _apart(places: Sequence[float]) -> list[float]:
    """Heights of labels, no two closer than a line of text, none below the axis."""
    order = sorted(range(len(places)), key=lambda i: -places[i])
    found = [min(place, HEIGHT - BOTTOM) for place in places]
    for below, above in pairwise(order):
        found[above] = min(found[above], found[below] - 16)
    return found
