"""Operations that make tensors from sizes: constant ones have free axes, ranges do not."""

from __future__ import annotations

from typing import Any

from prunus.graph.axes import Axes, fresh
from prunus.graph.rules.shape import sizes
from prunus.graph.see import See


def filled(see: See, size: list[int], **_: Any) -> Axes:
    """`zeros`, `ones`, `full`, `empty`, `new_*`: any index may go."""
    made = tuple(fresh(s) for s in see.shape)
    sizes(see, "size", size, made)
    return made


def arange(see: See, end: Any, start: Any = 0, step: Any = 1, **_: Any) -> Axes:
    """0, 1, ..., end - 1: its values are positions."""
    axis = see.fixed(see.shape[0], "positions are counted along it")
    if (start, step) == (0, 1) and isinstance(end, int):
        see.size("end", axis)
    return (axis,)


def scalar(see: See, **_: Any) -> Axes:
    return ()


RULES = {
    **dict.fromkeys("zeros ones full empty rand randn new_zeros new_ones new_full new_empty".split(), filled),
    "arange": arange,
    "scalar_tensor": scalar,
}
