"""Operations of a router: it chooses among units by value, and what it chose is looked up by index.

A tensor of indices that came from a choice *points* to the axis that was chosen from. What is looked up by it indexes
alike, so that an expert can go with all that is its own; any use of such indices as numbers fixes the axis.
"""

from __future__ import annotations

from typing import Any

import torch

from prunus.graph.axes import Axes, Axis, like
from prunus.graph.rules.pointwise import broadcast
from prunus.graph.see import See, Value

_CHOSEN = "a router chooses among its units"


def topk(see: See, self: Value, k: int, dim: int = -1, largest: bool = True, **_: Any) -> tuple[Axes, ...]:
    """The k largest along `dim`, and where they stood: what is removed cannot be chosen. Other orders fix the axis."""
    if largest and self.meta.dtype.is_floating_point:
        _choose(see, self, dim, k)
    else:
        see.fix(self.axes[dim], "it is put in order")
    taken = see.fixed(k, "the place in an order")
    made = [*map(like, self.axes)]
    made[dim] = taken
    return (tuple(made), tuple(map(like, made)))


def _choose(see: See, value: Value, dim: int, k: int) -> None:
    axis = value.axes[dim]
    see.algebra.say(axis, "expert", _CHOSEN)
    see.inexact(axis, _CHOSEN)
    see.algebra.least.append((axis, k))
    see.choose(value, dim)
    see.note.points[1] = axis


def softmax(see: See, self: Value, dim: int, **_: Any) -> Axes:
    """Over what a router chooses from, it is taken over what is kept; any other axis is fixed."""
    see.algebra.say(self.axes[dim], "weighed", "a softmax runs over it")
    see.choose(self, dim)
    return tuple(map(like, self.axes))


def sort(see: See, self: Value, dim: int = -1, **_: Any) -> tuple[Axes, ...]:
    """Values in order, and where they stood."""
    see.fix(self.axes[dim], "it is sorted")
    if self.points is not None:
        see.note.points[0] = self.points
    return tuple(tuple(map(like, self.axes)) for _ in see.out)


def counts(see: See, self: Value, bins: int, min: float, max: float) -> Axes:
    """`histc` of indices 0 to n - 1, a bin each: how often each was chosen. Anything else has fixed bins."""
    for axis in self.axes:
        see.fix(axis, "it is counted")
    if self.points is None or (self.points.size, 0, bins - 1) != (bins, min, max):
        see.numbers(self)
        return (see.fixed(bins, "bins of a histogram"),)
    see.size("bins", self.points)
    see.size("max", self.points, less=1)
    return (like(self.points),)


def looked_up(see: See, self: Value, indices: list[Value | None]) -> Axes | None:
    """`x[:, i, j]`: where `i` points to an axis, x indexes as that axis; else what is indexed is fixed."""
    given = [d for d, i in enumerate(indices) if i is not None]
    values = [v for v in indices if v is not None]
    if len(values) == 1 and values[0].meta.dtype == torch.bool:
        return _masked(see, self, given[0], values[0])
    if any(v.meta.dtype == torch.bool for v in values):
        return None
    for d, value in zip(given, values, strict=True):
        if value.points is not None and value.points.size == self.shape[d]:
            see.unify(self.axes[d], value.points)
        else:
            see.numbers(value)
            see.fix(self.axes[d], "it is indexed by a tensor")
    if self.points is not None:
        see.note.points[0] = self.points
    picked = broadcast(see, [v.axes for v in values])
    rest: list[Axis] = [like(a) for d, a in enumerate(self.axes) if d not in given]
    adjacent = given == list(range(given[0], given[-1] + 1))
    first = given[0] if adjacent else 0
    return (*rest[:first], *picked, *rest[first:])


def _masked(see: See, self: Value, first: int, mask: Value) -> Axes:
    """`x[:, mask]`: the dimensions of the mask become one, as long as the values say."""
    if self.points is not None:
        see.note.points[0] = self.points
    last = first + mask.ndim
    for axis in (*self.axes[first:last], *mask.axes):
        see.fix(axis, "it is chosen by a mask")
    chosen = see.fixed(see.shape[first], "it is chosen by a mask")
    return (*map(like, self.axes[:first]), chosen, *map(like, self.axes[last:]))


def put(see: See, self: Value, indices: list[Value | None], values: Value, **_: Any) -> Axes:
    """`index_put`: what is indexed is fixed; the other dimensions of `values` index as those of `self`."""
    given = [d for d, i in enumerate(indices) if i is not None]
    picked = [v for v in indices if v is not None]
    for d, value in zip(given, picked, strict=True):
        for axis in (self.axes[d], *value.axes):
            see.fix(axis, "it is written by index")
    masks = any(v.meta.dtype == torch.bool for v in picked)
    for axis in (*values.axes, *self.axes) if masks else ():
        see.fix(axis, "it is written by a mask")
    if not masks:
        where = broadcast(see, [v.axes for v in picked])
        rest = [like(a) for d, a in enumerate(self.axes) if d not in given]
        first = given[0] if given == list(range(given[0], given[-1] + 1)) else 0
        broadcast(see, [(*rest[:first], *where, *rest[first:]), values.axes])
    return tuple(map(like, self.axes))


def grouped(see: See, self: Value, mat2: Value, offs: Value | None, **_: Any) -> Axes | None:
    """`_grouped_mm`: rows (s, i), sorted by expert, each by the matrix of its own: (e, i, o) -> (s, o)."""
    if (self.ndim, mat2.ndim) != (2, 3) or offs is None:
        return None
    see.contract(self, -1, mat2, 1)
    see.unify(mat2.axes[0], offs.axes[0])
    see.read(mat2, 0)
    out = (like(self.axes[0]), like(mat2.axes[2]))
    see.macs(*out, mat2.axes[1])
    return out


RULES = {
    "topk": topk,
    **dict.fromkeys(("softmax", "_softmax"), softmax),
    "sort": sort,
    "histc": counts,
    "index": looked_up,
    "index_put": put,
    "_grouped_mm": grouped,
}
MOVES = frozenset("view reshape flatten unsqueeze squeeze transpose permute to clone contiguous alias expand".split())
"""Operations whose results are the indices they were given."""
TAKES = {"sort": ("self",), "histc": ("self",), "index": ("self", "indices")}
"""Arguments in which indices stay indices, as the rule says; any other use fixes what they point to."""
