"""Operations that few models have: weight norms, grids, windows, differences, complex numbers, writing by index."""

from __future__ import annotations

from typing import Any

from prunus.graph.axes import Axes, Axis, like, product
from prunus.graph.rules.pointwise import broadcast
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


def diff(see: See, self: Value, n: int = 1, dim: int = -1, **ends: Any) -> Axes:
    """Differences of neighbours, with what is put before and behind them."""
    made = [*map(like, self.axes)]
    values = [self, *(v for v in ends.values() if isinstance(v, Value))]
    for value in values:
        see.fix(value.axes[dim], "differences run along it")
    broadcast(see, [tuple(Axis() if d == dim % self.ndim else a for d, a in enumerate(v.axes)) for v in values])
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


def sampled(see: See, input: Value, grid: Value, **_: Any) -> Axes:
    """`grid_sampler`: (n, c, ...) read at the places (n, ..., 2 or 3)."""
    see.unify(input.axes[0], grid.axes[0])
    for axis in (*input.axes[2:], grid.axes[-1]):
        see.fix(axis, "it is sampled at places")
    return (like(input.axes[0]), like(input.axes[1]), *map(like, grid.axes[1:-1]))


def columns(see: See, self: Value, kernel_size: list[int], **_: Any) -> Axes:
    """`im2col`: (n, c, h, w) -> (n, c·k·k, places)."""
    for axis in self.axes[-2:]:
        see.fix(axis, "windows slide over it")
    window = see.fixed(kernel_size[0] * kernel_size[-1], "a place in a window")
    places = see.fixed(see.shape[-1], "windows slide over it")
    return (*map(like, self.axes[:-3]), product([self.axes[-3], window]), places)


def from_columns(see: See, self: Value, kernel_size: list[int], **_: Any) -> Axes:
    """`col2im`: (n, c·k·k, places) -> (n, c, h, w), windows added up."""
    see.fix(self.axes[-1], "windows slide over it")
    parts = see.algebra.factor(self.axes[-2], kernel_size[0] * kernel_size[-1])
    see.fix(parts[1] if parts else self.axes[-2], "a place in a window")
    kept = parts[0] if parts else see.fixed(see.shape[-3], "a place in a window")
    return (*map(like, self.axes[:-2]), like(kept), *(see.fixed(s, "windows slide over it") for s in see.shape[-2:]))


def windows(see: See, self: Value, dimension: int, **_: Any) -> Axes:
    """`unfold` along one dimension: (..., n, ...) -> (..., windows, ..., size)."""
    see.fix(self.axes[dimension], "windows slide over it")
    made = [*map(like, self.axes), see.fixed(see.shape[-1], "a place in a window")]
    made[dimension % self.ndim] = see.fixed(see.shape[dimension % self.ndim], "windows slide over it")
    return tuple(made)


def positions(see: See, **_: Any) -> Axes:
    """`linspace`, `tril_indices`: values that stand for their places."""
    return tuple(see.fixed(s, "positions are counted along it") for s in see.shape)


def ranks(see: See, self: Value, dim: int = -1, **_: Any) -> Axes:
    """`argsort`: where each value stands in the order."""
    see.fix(self.axes[dim], "it is sorted")
    return tuple(map(like, self.axes))


def one_hot(see: See, self: Value, **_: Any) -> Axes:
    """(...) -> (..., classes)."""
    return (*map(like, self.axes), see.fixed(see.shape[-1], "classes by index"))


def scattered(see: See, self: Value, dim: int, index: Value, **args: Any) -> Axes:
    """`scatter`, `scatter_add`: written by index along `dim`; the others index alike."""
    sources = [index, *(v for v in args.values() if isinstance(v, Value))]
    for d, axis in enumerate(self.axes):
        for other in (source.axes[d] for source in sources):
            if d != dim % self.ndim and other.size == axis.size:
                see.unify(axis, other)
            else:
                see.fix(axis, "it is written by index")
                see.fix(other, "it is written by index")
    return tuple(map(like, self.axes))


RULES = {
    "grid_sampler": sampled,
    "im2col": columns,
    "col2im": from_columns,
    "unfold": windows,
    **dict.fromkeys(("linspace", "tril_indices", "triu_indices"), positions),
    "argsort": ranks,
    "one_hot": one_hot,
    **dict.fromkeys(("scatter", "scatter_add"), scattered),
    "_weight_norm": weight_norm,
    "meshgrid": meshgrid,
    "diff": diff,
    "view_as_complex": as_complex,
    "view_as_real": as_real,
    **dict.fromkeys(("reshape_as", "view_as"), viewed_as),
}
