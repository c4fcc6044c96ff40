"""Operations that compute a statistic: per channel it is exact, over an axis it counts what is kept."""

from __future__ import annotations

from typing import Any

from prunus.graph.axes import Axes, fresh, like, product
from prunus.graph.rules.contract import reduced, remaining
from prunus.graph.see import See, Value

_OVER = "the statistic of a normalisation runs over it"


def batch_norm(see: See, input: Value, **args: Any) -> Axes:
    """Statistics per channel (dimension 1), so that a channel can go without a trace."""
    for entry in args.values():
        if isinstance(entry, Value):
            see.unify(input.axes[1], entry.axes[0])
    if args.get("training", True) or args.get("use_input_stats"):
        for axis in input.axes[2:]:
            see.fix(axis, _OVER)
    return tuple(map(like, input.axes))


def layer_norm(see: See, input: Value, normalized_shape: list[int], weight: Value | None, **args: Any) -> Axes:
    """`layer_norm`, `rms_norm`: a statistic over the last dimensions."""
    last = len(normalized_shape)
    for index, axis in enumerate(input.axes[-last:]):
        for entry in (weight, args.get("bias")):
            if entry is not None:
                see.unify(axis, entry.axes[index])
        see.inexact(axis, _OVER)
        see.algebra.say(axis, "trunk", _OVER)
        see.size("normalized_shape", axis, index)
    see.read(input, *range(-last, 0))
    return tuple(map(like, input.axes))


def group_norm(see: See, input: Value, num_groups: int, weight: Value | None, bias: Value | None, **_: Any) -> Axes:
    """Whole groups of channels can go without a trace; inside a group the statistic changes."""
    group, inner = fresh(num_groups), fresh(input.shape[1] // num_groups)
    see.unify(input.axes[1], product([group, inner]))
    see.size("num_groups", group)
    for entry in (weight, bias):
        if entry is not None:
            see.unify(input.axes[1], entry.axes[0])
    for axis in (inner, *input.axes[2:]):
        see.inexact(axis, _OVER)
    see.read(input, 1, over=inner)
    return tuple(map(like, input.axes))


def mean(see: See, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Axes:
    """A mean counts what is kept; one step of an RMS norm when over the trunk of a transformer."""
    dims = reduced(self, dim)
    for d in dims:
        see.inexact(self.axes[d], "a mean runs over it")
        if d == self.ndim - 1 and keepdim:
            see.algebra.say(self.axes[d], "trunk", _OVER)
    see.read(self, *dims)
    return remaining(self, dims, keepdim)


RULES = {
    **dict.fromkeys(("batch_norm", "instance_norm"), batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    "group_norm": group_norm,
    "mean": mean,
}
