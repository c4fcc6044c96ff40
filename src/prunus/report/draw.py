"""The network as a drawing: a bar a layer, from top to bottom, as wide as its units; paths that skip run beside it."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import median
from typing import Any

WIDTH, CENTER, WIDEST, STEP, BAR = 340, 142, 264, 41, 9
LANE, LANES = 9, 6
NAME = 25
"""Characters of a name there is room for."""
UNEVEN = 6
"""Where the widest layer is so many times the middle one, bars go by the square root."""


@dataclass(frozen=True)
class Bar:
    """A layer: its words, and the half widths of its bar before and after. `y` is the top of the bar."""

    name: str
    op: str
    role: str
    y: float
    before: float
    after: float
    count_before: str
    count_after: str


@dataclass(frozen=True)
class Drawing:
    """What the page draws; `paths` are lines between bars, those that skip layers apart."""

    bars: list[Bar]
    straight: list[str]
    skips: list[str]
    height: float
    width: int
    rooted: bool


def drawn(network: list[dict[str, Any]]) -> Drawing | None:
    """Lay out the layers; None where there is nothing to draw."""
    widths = [layer["units"][0] for layer in network if layer["units"]]
    if not widths:
        return None
    rooted = max(widths) > UNEVEN * median(widths)
    bars = [_bar(layer, i, max(widths), rooted) for i, layer in enumerate(network)]
    pairs = [(j, i) for i, layer in enumerate(network) for j in layer["reads"]]
    straight = [_down(bars[j], bars[i]) for j, i in pairs if i == j + 1]
    skips, lanes = _skips([pair for pair in pairs if pair[1] > pair[0] + 1], bars)
    return Drawing(bars, straight, skips, len(bars) * STEP + 8, WIDTH + max(0, lanes - 4) * LANE, rooted)


def _bar(layer: dict[str, Any], index: int, widest: int, rooted: bool) -> Bar:
    before, after = layer["units"] or (0, 0)
    density = layer["density"]
    half = _half(before, widest, rooted)
    return Bar(
        _ended(layer["name"]),
        layer["op"] if layer["role"] == "join" else "",
        layer["role"],
        index * STEP + 22,
        half,
        half * density if density < 1 else _half(after, widest, rooted),
        f"{before:,}" if before else "",
        f"{density * 100:.3g} %" if density < 1 and before else f"{after:,}" if before else "",
    )


def _ended(name: str) -> str:
    """The end of a long name, which tells layers apart."""
    return name if len(name) <= NAME else "…" + name[1 - NAME :]


def _half(units: int, widest: int, rooted: bool) -> float:
    part = sqrt(units / widest) if rooted else units / widest
    return round(max(part * WIDEST / 2, 2.0), 1)


def _down(above: Bar, below: Bar) -> str:
    return f"M{CENTER} {above.y + BAR:g}V{below.y:g}"


def _skips(pairs: list[tuple[int, int]], bars: list[Bar]) -> tuple[list[str], int]:
    """Paths on the right, each in the first lane that is free; the short ones innermost."""
    taken: list[list[tuple[int, int]]] = []
    paths: list[str] = []
    for start, end in sorted(pairs, key=lambda pair: pair[1] - pair[0]):
        free = next((n for n, lane in enumerate(taken) if all(end <= a or b <= start for a, b in lane)), len(taken))
        if free == len(taken):
            taken.append([])
        taken[free].append((start, end))
        paths.append(_beside(bars[start], bars[end], 282 + LANE * (free % (2 * LANES))))
    return paths, min(len(taken), 2 * LANES)


def _beside(above: Bar, below: Bar, x: float) -> str:
    """Out of the right end of one bar, down the lane, and into the right end of another."""
    top, bottom, bend = above.y + BAR * 0.7, below.y + BAR * 0.3, 5
    start, end = CENTER + above.before, CENTER + below.before + 1
    return f"M{start:g} {top:g}H{x - bend:g}q{bend} 0 {bend} {bend}V{bottom - bend:g}q0 {bend} -{bend} {bend}H{end:g}"
