"""Operations that look at positions along an axis, and so fix it: pooling, softmax, lookups, sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunus.graph.axes import Axes, Axis, like
from prunus.graph.rules.contract import reduced, remaining
from prunus.graph.rules.pointwise import tensors_in
from prunus.graph.see import See, Value


def spatial(dims: int) -> Callable[..., Any]:
    """A rule for pooling and resizing over the last `dims` dimensions."""

    def rule(see: See, self: Value, **_: Any) -> Axes | tuple[Axes, ...]:
        for axis in self.axes[-dims:]:
            see.fix(axis, "it is pooled or resized")
        made = [
            (*map(like, self.axes[:-dims]), *(see.fixed(s, "position in a feature map") for s in meta.shape[-dims:]))
            for meta in see.out
        ]
        return made[0] if len(made) == 1 else tuple(made)

    return rule


def resize(see: See, **args: Any) -> Axes | tuple[Axes, ...]:
    """`upsample_*`, `interpolate`: all but batch and channels are positions."""
    value = tensors_in(args)[0]
    return spatial(value.ndim - 2)(see, value)


def along(reason: str) -> Callable[..., Axes]:
    """A rule for operations along `dim` that keep the shape."""

    def rule(see: See, self: Value, **args: Any) -> Axes:
        dims = args.get("dim", args.get("dims"))
        for d in reduced(self, dims):
            see.fix(self.axes[d], reason)
        return tuple(map(like, self.axes))

    return rule


def reduce_along(see: See, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Axes | tuple[Axes, ...]:
    """`max`, `argmax`, `var`, `logsumexp`, ...: what they run over is fixed."""
    dims = reduced(self, dim)
    for d in dims:
        see.fix(self.axes[d], "an extremum or another statistic runs over it")
    made = tuple(remaining(self, dims, keepdim) for _ in see.out)
    return made[0] if len(made) == 1 else made


def embedding(see: See, weight: Value, indices: Value, **_: Any) -> Axes:
    see.fix(weight.axes[0], "its rows are looked up by index")
    return (*map(like, indices.axes), like(weight.axes[1]))


def index_select(see: See, self: Value, dim: int, index: Value) -> Axes:
    see.fix(self.axes[dim], "it is indexed by a tensor")
    axes = list(map(like, self.axes))
    axes[dim] = like(index.axes[0]) if index.ndim else Axis()
    return tuple(axes)


def gather(see: See, self: Value, dim: int, index: Value, **_: Any) -> Axes:
    for d, (mine, theirs) in enumerate(zip(self.axes, index.axes, strict=True)):
        if d != dim % self.ndim and mine.size == theirs.size:
            see.unify(mine, theirs)
        else:
            see.fix(mine, "it is gathered by index")
    return tuple(map(like, index.axes))


def places(see: See, **args: Any) -> None:
    """`where` of a condition alone, as `nonzero`: as many places as the values say."""


def regions(see: See, input: Value, rois: Value, **_: Any) -> Axes:
    """`torchvision.roi_align`: (n, c, h, w) and (k, 5) -> (k, c, height, width)."""
    for axis in (*input.axes[-2:], *rois.axes):
        see.fix(axis, "a region is pooled")
    spatial = (see.fixed(s, "position in a feature map") for s in see.shape[-2:])
    see.fix(input.axes[0], "regions are taken by index")
    return (like(rois.axes[0]), like(input.axes[1]), *spatial)


_SOFTMAX = ("log_softmax", "_log_softmax")
_SCAN = ("cumprod", "flip", "roll", "triu", "tril", "logcumsumexp")
_STATISTIC = (
    "max",
    "min",
    "amax",
    "amin",
    "argmax",
    "argmin",
    "var",
    "std",
    "prod",
    "median",
    "logsumexp",
    "all",
    "any",
    "std_mean",
    "var_mean",
    "aminmax",
    "count_nonzero",
)
_POOL = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
RULES = {
    **{f"{name}{n}d": spatial(n) for name in _POOL for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": spatial(n) for n in (2, 3)},
    **{
        f"upsample_{kind}": resize
        for kind in ("nearest1d", "nearest2d", "nearest3d", "bilinear2d", "bicubic2d", "linear1d", "trilinear3d")
    },
    **dict.fromkeys(_SOFTMAX, along("a softmax runs over it")),
    **dict.fromkeys(_SCAN, along("its order counts")),
    **dict.fromkeys(_STATISTIC, reduce_along),
    "embedding": embedding,
    "where.default": places,
    "torchvision.roi_align": regions,
    "index_select": index_select,
    "gather": gather,
}
