"""Operations that move, split and join axes without looking at values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunus.graph.axes import Axes, Axis, concat, fresh, like, product
from prunus.graph.rules.pointwise import broadcast
from prunus.graph.see import See, Value

_END = 2**62


def view(see: See, self: Value, **args: Any) -> Axes:
    """`view`, `reshape`, `unflatten`, `flatten`: the flattened product is factored anew."""
    made = tuple(see.algebra.regroup(self.axes, see.shape))
    name = next((n for n in ("size", "shape", "sizes") if n in args), None)
    if name is not None:
        first = args["dim"] % self.ndim if name == "sizes" else 0
        sizes(see, name, args[name], made[first:])
    return made


def sizes(see: See, arg: str, given: Sequence[int], axes: Sequence[Axis]) -> None:
    """The entries of an integer list are the sizes of these axes; -1 stays as it is."""
    for index, value in enumerate(given):
        if value != -1:
            see.size(arg, axes[index], index)


def permute(see: See, self: Value, dims: list[int]) -> Axes:
    return tuple(like(self.axes[d]) for d in dims)


def transpose(see: See, self: Value, **dims: int) -> Axes:
    """`transpose`, `swapaxes`: two dimensions change places, whatever the operation calls them."""
    i, j = dims.values()
    axes = list(map(like, self.axes))
    axes[i], axes[j] = axes[j], axes[i]
    return tuple(axes)


def turned(see: See, self: Value) -> Axes:
    """`t`, `numpy_T`: all dimensions in reverse."""
    return tuple(like(axis) for axis in reversed(self.axes))


def matrix_turned(see: See, self: Value) -> Axes:
    """`mT`: the last two dimensions change places."""
    return transpose(see, self, dim0=-2, dim1=-1)


def movedim(see: See, self: Value, source: Any, destination: Any) -> Axes:
    pairs = [(source, destination)] if isinstance(source, int) else list(zip(source, destination, strict=True))
    placed = {d % self.ndim: s % self.ndim for s, d in pairs}
    rest = (d for d in range(self.ndim) if d not in placed.values())
    return tuple(like(self.axes[placed[d] if d in placed else next(rest)]) for d in range(self.ndim))


def unsqueeze(see: See, self: Value, dim: int) -> Axes:
    axes = list(map(like, self.axes))
    axes.insert(dim % (self.ndim + 1), Axis())
    return tuple(axes)


def squeeze(see: See, self: Value, dim: Any = None) -> Axes:
    dims = [dim] if isinstance(dim, int) else list(dim if dim is not None else range(self.ndim))
    gone = {d % self.ndim for d in dims}
    return tuple(like(a) for d, a in enumerate(self.axes) if not (d in gone and self.shape[d] == 1))


def expand(see: See, self: Value, size: list[int], **_: Any) -> Axes:
    """Dimensions of size one are repeated: a new atom, free until something meets it."""
    lead = len(size) - self.ndim
    made: list[Axis] = []
    for index, wanted in enumerate(see.shape):
        old = self.axes[index - lead] if index >= lead else Axis()
        made.append(like(old) if old.size == wanted else fresh(wanted))
    sizes(see, "size", size, made)
    return tuple(made)


def expand_as(see: See, self: Value, other: Value) -> Axes:
    return broadcast(see, [self.axes, other.axes])


def repeat(see: See, self: Value, **args: Any) -> Axes:
    """`repeat`, `tile`: each dimension laid end to end `n` times, the repetition outermost."""
    counts: list[int] = args["repeats"] if "repeats" in args else args["dims"]
    lead = len(counts) - self.ndim
    made: list[Axis] = []
    for index, count in enumerate(counts):
        again = fresh(count)
        see.size("repeats" if "repeats" in args else "dims", again, index)
        made.append(product([again, self.axes[index - lead]]) if index >= lead else again)
    return tuple(made)


def repeat_interleave(see: See, self: Value, repeats: Any, dim: int | None, **_: Any) -> Axes | None:
    """Each index `n` times in place: the repetition innermost."""
    if not isinstance(repeats, int) or dim is None:
        return None
    again = fresh(repeats)
    see.size("repeats", again)
    return _with(self, dim, product([self.axes[dim], again]))


def cat(see: See, tensors: list[Value], dim: int) -> Axes:
    """Laid end to end along `dim`; the other dimensions are unified."""
    full = [t for t in tensors if t.shape != (0,)] or tensors
    dim = dim % full[0].ndim
    rest = broadcast(see, [(*t.axes[:dim], Axis(), *t.axes[dim + 1 :]) for t in full])
    return (*rest[:dim], concat([t.axes[dim] for t in full]), *rest[dim + 1 :])


def stack(see: See, tensors: list[Value], dim: int) -> Axes:
    axes = list(broadcast(see, [t.axes for t in tensors]))
    axes.insert(dim % (tensors[0].ndim + 1), see.fixed(len(tensors), "stacked tensors"))
    return tuple(axes)


def split(see: See, self: Value, dim: int, **args: Any) -> tuple[Axes, ...]:
    """`split`, `chunk`: the axis is cut where the pieces meet; pieces of equal sizes must stay equal."""
    pieces = pieces_of(see, self.axes[dim], [meta.shape[dim] for meta in see.out], "it is split")
    listed = next((n for n in ("split_sizes", "split_size") if isinstance(args.get(n), list)), None)
    if listed is not None:
        sizes(see, listed, args[listed], pieces)
    else:
        see.together(pieces)
        if args.get("split_size") == pieces[0].size:  # larger than the axis, it says no size
            see.size("split_size", pieces[0])
    return tuple(_with(self, dim, piece) for piece in pieces)


def glu(see: See, self: Value, dim: int) -> Axes:
    """`a * sigmoid(b)` of the halves a, b along `dim`: they index alike."""
    a, b = pieces_of(see, self.axes[dim], [self.shape[dim] // 2] * 2, "it is halved")
    return _with(self, dim, see.unify(a, b))


def pieces_of(see: See, axis: Axis, widths: Sequence[int], reason: str) -> list[Axis]:
    """Cut an axis; where its atoms do not allow it, fix it and go on with fixed pieces."""
    cut = see.algebra.cut(axis, widths)
    if cut is None:
        see.fix(axis, f"{reason} across its factors")
        return [see.fixed(w, reason) for w in widths]
    pieces = iter(cut)
    return [next(pieces) if w > 0 else fresh(0) for w in widths]


def unbind(see: See, self: Value, dim: int = 0) -> tuple[Axes, ...]:
    see.fix(self.axes[dim], "its indices are taken apart")
    return tuple(_without(self, dim) for _ in see.out)


def select(see: See, self: Value, dim: int, index: int) -> Axes:
    see.fix(self.axes[dim], "one index of it is selected")
    return _without(self, dim)


def slice_(see: See, self: Value, dim: int, start: int | None, end: int | None, step: int) -> Axes:
    """A range of indices: the axis is cut at its ends; a stride fixes it."""
    size = self.shape[dim]
    begin, stop, _ = slice(start, end, step).indices(size)
    if (begin, stop, step) == (0, size, 1):
        return tuple(map(like, self.axes))
    if step != 1 or stop <= begin:
        see.fix(self.axes[dim], "it is sliced with a stride" if step != 1 else "an empty slice of it is taken")
        return _with(self, dim, see.fixed(see.shape[dim], "a strided slice"))
    widths = [begin, stop - begin, size - stop]
    pieces = pieces_of(see, self.axes[dim], widths, "it is sliced")
    _slice_bounds(see, pieces, widths, start, end, size)
    return _with(self, dim, pieces[1])


def _slice_bounds(
    see: See, pieces: list[Axis], widths: list[int], start: int | None, end: int | None, size: int
) -> None:
    """Start and end are sizes of what lies before (or, counted from the back, behind) them."""
    before = [p for p, w in zip(pieces, widths, strict=True) if w]
    head = before[: 1 if widths[0] else 0]
    through = len(head) + 1
    if start:
        see.size("start", concat(head if start > 0 else before[len(head) :]), minus=start < 0)
    if end is not None and end < size:
        see.size("end", concat(before[:through] if end > 0 else before[through:]), minus=end < 0)


def narrow(see: See, self: Value, dim: int, start: Any, length: int) -> Axes | None:
    """As a slice from `start`, which counts from the back where it is negative."""
    if not isinstance(start, int):
        return None
    size = self.shape[dim]
    begin = start % size if start < 0 else start
    widths = [begin, length, size - begin - length]
    pieces = pieces_of(see, self.axes[dim], widths, "it is narrowed")
    _slice_bounds(see, pieces, widths, start, None, size)
    see.size("length", pieces[1])
    return _with(self, dim, pieces[1])


def pad(see: See, self: Value, pad: list[int], **args: Any) -> Axes:
    """Constant padding makes a concatenation with new free axes; any other mode fixes the padded axis."""
    axes = list(map(like, self.axes))
    plain = args.get("mode", "constant") == "constant" and not args.get("value") and min(pad) >= 0
    for index in range(len(pad) // 2):
        before, after = pad[2 * index], pad[2 * index + 1]
        dim = self.ndim - 1 - index
        if before == after == 0:
            continue
        if not plain:
            see.fix(self.axes[dim], "it is padded with other values than zero")
            axes[dim] = see.fixed(see.shape[dim], "a padded axis")
            continue
        sides = [fresh(n) for n in (before, after)]
        parts = [(sides[0], before), (self.axes[dim], 1), (sides[1], after)]
        axes[dim] = concat([axis for axis, n in parts if n])
        for side, (axis, n) in enumerate(zip(sides, (before, after), strict=True)):
            if n:
                see.size("pad", axis, 2 * index + side)
    return tuple(axes)


def pixel_shuffle(see: See, self: Value, upscale_factor: int) -> Axes:
    """(c·r·r, h, w) -> (c, h·r, w·r)."""
    channels = see.algebra.factor(self.axes[-3], upscale_factor**2)
    for axis in (*self.axes[-2:], *([channels[1]] if channels else [self.axes[-3]])):
        see.fix(axis, "pixels are shuffled")
    kept = channels[0] if channels else see.fixed(see.shape[-3], "pixels are shuffled")
    spatial = (see.fixed(s, "position in a feature map") for s in see.shape[-2:])
    return (*map(like, self.axes[:-3]), kept, *spatial)


def pixel_unshuffle(see: See, self: Value, downscale_factor: int) -> Axes:
    """(c, h·r, w·r) -> (c·r·r, h, w)."""
    for axis in self.axes[-2:]:
        see.fix(axis, "pixels are shuffled")
    channels = product([self.axes[-3], see.fixed(downscale_factor**2, "pixels are shuffled")])
    spatial = (see.fixed(s, "position in a feature map") for s in see.shape[-2:])
    return (*map(like, self.axes[:-3]), channels, *spatial)


def channel_shuffle(see: See, self: Value, groups: int) -> Axes:
    """(g·c) -> (c·g)."""
    halves = see.algebra.factor(self.axes[1], self.shape[1] // groups)
    if halves is None:
        see.fix(self.axes[1], "channels are shuffled across its factors")
        return _with(self, 1, see.fixed(self.shape[1], "channels are shuffled"))
    see.size("groups", halves[0])
    return _with(self, 1, product(reversed(halves)))


def _with(value: Value, dim: int, axis: Axis) -> Axes:
    dim = dim % value.ndim
    return (*map(like, value.axes[:dim]), like(axis), *map(like, value.axes[dim + 1 :]))


def _without(value: Value, dim: int) -> Axes:
    dim = dim % value.ndim
    return tuple(like(a) for d, a in enumerate(value.axes) if d != dim)


RULES = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "ravel"), view),
    "permute": permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose),
    **dict.fromkeys(("t", "numpy_T"), turned),
    "mT": matrix_turned,
    **dict.fromkeys(("movedim", "moveaxis"), movedim),
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    **dict.fromkeys(("expand", "broadcast_to"), expand),
    "expand_as": expand_as,
    **dict.fromkeys(("repeat", "tile"), repeat),
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "stack": stack,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), split),
    "glu": glu,
    "unbind": unbind,
    "select": select,
    "slice": slice_,
    "narrow": narrow,
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
}
