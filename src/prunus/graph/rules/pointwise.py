"""Operations that act on each element alone: their operands index alike, after broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunus.graph.axes import Axes, Axis, like
from prunus.graph.see import See, Value


def tensors_in(args: dict[str, Any]) -> list[Value]:
    """Every tensor argument in order, those in lists included."""
    found: list[Value] = []
    for value in args.values():
        items: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
        found.extend(v for v in items if isinstance(v, Value))
    return found


def pointwise(see: See, **args: Any) -> Axes:
    """`add`, `mul`, `relu`, `where`, ...: broadcast axes are unified."""
    return broadcast(see, [v.axes for v in tensors_in(args)])


def in_place(see: See, self: Value, **args: Any) -> Axes:
    """`copy_`, `fill_`: the result is the first operand."""
    broadcast(see, [self.axes, *(v.axes for v in tensors_in(args))])
    return tuple(like(axis) for axis in self.axes)


def broadcast(see: See, operands: Sequence[Axes]) -> Axes:
    """Unify right-aligned axes; a dimension of size one takes the size of the others."""
    ndim = max((len(axes) for axes in operands), default=0)
    result: list[Axis] = []
    for back in range(ndim, 0, -1):
        wide = [axes[-back] for axes in operands if len(axes) >= back and axes[-back].size != 1]
        result.append(like(wide[0]) if wide else Axis())
        for other in wide[1:]:
            see.unify(wide[0], other)
    return tuple(result)


def prelu(see: See, self: Value, weight: Value) -> Axes:
    """One slope for all, or one for each channel (dimension 1)."""
    if weight.ndim and weight.shape[0] > 1:
        see.unify(self.axes[1], weight.axes[0])
    return tuple(map(like, self.axes))


def same(see: See, **args: Any) -> Axes:
    """`dropout`, `clone`, `to`, `zeros_like`, ...: the result indexes as the first tensor does."""
    return tuple(like(axis) for axis in tensors_in(args)[0].axes)


_POINTWISE = (
    "add sub mul div rsub pow maximum minimum max.other min.other fmod remainder atan2 where masked_fill lerp addcmul "
    "addcdiv clamp clamp_min clamp_max eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or "
    "__and__ __or__ __xor__ floor_divide true_divide divide multiply subtract xlogy threshold "
    "relu relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu selu celu mish softplus "
    "log_sigmoid exp expm1 log log1p log2 log10 sqrt rsqrt square abs neg sign sin cos tan erf reciprocal "
    "floor ceil round trunc logical_not bitwise_not isnan isinf isfinite nan_to_num softshrink hardshrink "
    "asin acos atan sinh cosh positive polar complex"
)
_SAME = (
    "dropout alpha_dropout feature_dropout clone contiguous alias detach lift_fresh_copy lift_fresh to type_as "
    "_to_copy zeros_like ones_like full_like empty_like rand_like randn_like bernoulli "
    "zero fill.Scalar uniform normal"
)
RULES = {
    **dict.fromkeys(_POINTWISE.split(), pointwise),
    **dict.fromkeys(_SAME.split(), same),
    "prelu": prelu,
    "copy": in_place,
    "fill": in_place,
}
