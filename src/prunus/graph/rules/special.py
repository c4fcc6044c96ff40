"""Operations that few models have: weight norms, grids, differences, complex numbers."""

from __future__ import annotations

from typing import Any

from prunus.graph.axes import Axes, like
from prunus.graph.rules.shape import view
from prunus.graph.see import See, Value


def weight_norm(see: See, v: Value, g: Value, dim: int = 0) -> Axes:
    """`_weight_norm`: w = g v / ‖v‖, the norm over all dimensions but `dim`. A row of zeros has no direction."""
    see.unify(v.axes[dim], g.axes[dim])
    see.inexact(v.axes[dim], "a weight norm divides by the length of its rows")
    see.read(v, *(d for d in range(v.ndim) if d != dim % v.ndim))
    return tuple(map(like, v.axes))


def meshgrid(see: See, tensors: list[Value], indexing: str = "ij") -> tuple[Axes, ...]:
    """Each tensor (n) along a dimension of its own; `xy` exchanges the first two."""
    axes = [t.axes[0] if t.ndim else see.fixed(1, "a grid") for t in tensors]
    if indexing == "xy" and len(axes) > 1:
        axes[:2] = axes[1], axes[0]
    return tuple(tuple(map(like, axes)) for _ in tensors)


def diff(see: See, self: Value, n: int = 1, dim: int = -1, **_: Any) -> Axes:
    """Differences of neighbours."""
    made = [*map(like, self.axes)]
    see.fix(self.axes[dim], "differences run along it")
    made[dim] = see.fixed(see.shape[dim], "differences run along it")
    return tuple(made)


def as_complex(see: See, self: Value) -> Axes:
    """(..., 2) -> (...)."""
    see.fix(self.axes[-1], "real and imaginary part")
    return tuple(map(like, self.axes[:-1]))


def as_real(see: See, self: Value) -> Axes:
    """(...) -> (..., 2)."""
    return (*map(like, self.axes), see.fixed(2, "real and imaginary part"))


def viewed_as(see: See, self: Value, other: Value) -> Axes:
    """`reshape_as`, `view_as`."""
    made = view(see, self)
    for axis, theirs in zip(made, other.axes, strict=True):
        see.unify(axis, theirs)  # its sizes follow those of the other
    return made


RULES = {
    "_weight_norm": weight_norm,
    "meshgrid": meshgrid,
    "diff": diff,
    "view_as_complex": as_complex,
    "view_as_real": as_real,
    **dict.fromkeys(("reshape_as", "view_as"), viewed_as),
}
