"""`pushed`: how large units are before and after, as a picture: a histogram of their norms on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import torch
from torch import nn

from prunus.graph.groups import Groups
from prunus.regularize.units import norms

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 34, 46
BARS_A_DECADE = 5
FLOOR = -8
"""Norms below 10 to this are drawn in the first bar: a unit that is zero has no logarithm."""
COLORS = ("#9a9a9a", "#2f6fb3")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.soft{fill:#777}.grid{stroke:#8883}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.soft{fill:#aaa}}"
)


def pushed(before: nn.Module, after: nn.Module, groups: Groups, *, names: Sequence[str] = ("before", "after")) -> str:
    """An SVG picture of the norms of all units (all that each owns) in two models of the same shapes.

    Both histograms have the same bars, five to a factor of ten. What is pushed well falls in two heaps with nothing
    between them: the left one can be cut.

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> groups = prunus.group(prunus.trace(net, torch.ones(2, 4)))
    >>> pushed(net, net, groups).startswith("<svg ")
    True
    """
    logs = {name: _logs(model, groups) for name, model in zip(names, (before, after), strict=True)}
    low = math.floor(min(min(values) for values in logs.values()))
    high = max(math.ceil(max(max(values) for values in logs.values())), low + 1)
    return _drawn({name: _counted(values, low, high) for name, values in logs.items()}, low, high)


def _logs(model: nn.Module, groups: Groups) -> list[float]:
    """log10 of the norm of every unit."""
    every = torch.cat([norm.cpu().double() for norm in norms(model, groups).values()])
    return every.clamp(min=10.0**FLOOR).log10().tolist()


def _counted(values: Sequence[float], low: int, high: int) -> list[int]:
    counts = [0] * ((high - low) * BARS_A_DECADE)
    for value in values:
        counts[min(int((value - low) * BARS_A_DECADE), len(counts) - 1)] += 1
    return counts


def _drawn(counts: Mapping[str, Sequence[int]], low: int, high: int) -> str:
    most = max(max(each) for each in counts.values())
    step = _round_step(most)
    top = math.ceil(most / step) * step
    across = (WIDTH - LEFT - RIGHT) / (high - low)
    up = (HEIGHT - TOP - BOTTOM) / top
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>Norms of units, {escape(' and '.join(counts))}</title><style>{STYLE}</style>",
        *(_line(HEIGHT - BOTTOM - n * up, n) for n in range(0, top + 1, step)),
        *(_tick(LEFT + (n - low) * across, n) for n in _decades(low, high)),
        *(_bars(each, across / BARS_A_DECADE, up, COLORS[i]) for i, each in enumerate(counts.values())),
        *(_legend(name, sum(each), i) for i, (name, each) in enumerate(counts.items())),
        f'<text class="soft" x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 8}" text-anchor="middle">'
        "L2 norm of all that a unit owns</text>",
        f'<text class="soft" x="{LEFT - 40}" y="{TOP - 14}">units</text>',
    ]
    return "\n".join([*parts, "</svg>\n"])


def _round_step(most: int) -> int:
    """A round distance of grid lines, of which there are at most five."""
    size = 10 ** max(len(str(most)) - 2, 0)
    return next(n * size for n in (1, 2, 5, 10, 20, 50) if most <= 5 * n * size)


def _decades(low: int, high: int) -> range:
    return range(low, high + 1, 1 if high - low <= 9 else 2)


def _line(y: float, value: int) -> str:
    label = f'<text class="soft" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>'
    return f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>{label}'


def _tick(x: float, power: int) -> str:
    number = (
        f"{10.0**power:g}"
        if -3 <= power <= 3
        else f"10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    )
    return f'<text class="soft" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{number}</text>'


def _bars(counts: Sequence[int], width: float, up: float, color: str) -> str:
    """One filled outline over all bars."""
    base = HEIGHT - BOTTOM
    path = "".join(f"V{base - count * up:.1f}h{width:.2f}" for count in counts)
    return f'<path d="M{LEFT} {base}{path}V{base}Z" fill="{color}66" stroke="{color}" stroke-width="1.5"/>'


def _legend(name: str, count: int, index: int) -> str:
    x = LEFT + 90 + index * 200
    box = f'<rect x="{x}" y="{TOP - 25}" width="12" height="12" fill="{COLORS[index]}66" stroke="{COLORS[index]}"/>'
    return f'{box}<text x="{x + 18}" y="{TOP - 14}">{escape(name)} ({count} units)</text>'
