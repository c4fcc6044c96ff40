"""Operations that add products up: the axes summed over are unified, and read removed indices as zero."""

from __future__ import annotations

from string import ascii_letters
from typing import Any

from prunus.graph.axes import Axes, Axis, concat, fresh, like, product
from prunus.graph.rules.pointwise import broadcast
from prunus.graph.see import See, Value


def linear(see: See, input: Value, weight: Value, bias: Value | None) -> Axes:
    """y = x wᵀ + b; x: (..., in), w: (out, in), b: (out,)."""
    see.contract(input, -1, weight, -1)
    if weight.ndim == 1:
        return tuple(like(a) for a in input.axes[:-1])
    if bias is not None:
        see.unify(weight.axes[0], bias.axes[0])
    out = (*map(like, input.axes[:-1]), like(weight.axes[0]))
    see.macs(*out, weight.axes[1])
    return out


def convolution(see: See, input: Value, weight: Value, bias: Value | None, groups: int, **_: Any) -> Axes:
    """x: (n, g·i, ...), w: (g·o, i, kernel...), b: (g·o,); each group of channels is convolved alone."""
    group = fresh(groups)
    see.size("groups", group)
    see.unify(input.axes[-weight.ndim + 1], product([group, weight.axes[1]]))
    inner = fresh(weight.shape[0] // groups)
    see.unify(weight.axes[0], product([group, inner]))
    return _convolved(see, input, weight, bias, group, inner, summed=weight.axes[1])


def transposed(see: See, input: Value, weight: Value, bias: Value | None, groups: int, **_: Any) -> Axes:
    """`conv_transpose`; x: (n, g·i, ...), w: (g·i, o, kernel...)."""
    group = fresh(groups)
    see.size("groups", group)
    see.unify(input.axes[-weight.ndim + 1], weight.axes[0])
    summed = fresh(weight.shape[0] // groups)
    see.unify(weight.axes[0], product([group, summed]))
    made = _convolved(see, input, weight, bias, group, weight.axes[1], summed)
    see.macs(*input.axes, *weight.axes[1:])
    return made


def _convolved(
    see: See, input: Value, weight: Value, bias: Value | None, group: Axis, inner: Axis, summed: Axis
) -> Axes:
    spatial = weight.ndim - 2
    for axis in (*input.axes[-spatial:], *weight.axes[2:]):
        see.fix(axis, "a convolution slides over it")
    channels = product([group, inner])
    if bias is not None:
        see.unify(bias.axes[0], channels)
    if group.size > 1 and inner.size * summed.size > 1:
        see.algebra.say(group, "conv_group", "groups of a convolution")
    see.read(input, -spatial - 1, over=summed)
    see.read(weight, 1 if summed is weight.axes[1] else 0, over=summed)
    batch = tuple(like(a) for a in input.axes[: -spatial - 1])
    made = (*batch, channels, *(see.fixed(s, "position in a feature map") for s in see.shape[-spatial:]))
    see.macs(*made, summed, *weight.axes[2:])
    return made


def matmul(see: See, self: Value, **args: Any) -> Axes:
    """(..., m, k) by (..., k, n), batch dimensions broadcast; vectors as in `torch.matmul`."""
    other = next(v for v in args.values() if isinstance(v, Value))
    return multiply(see, self, other)


def multiply(see: See, left: Value, right: Value) -> Axes:
    see.contract(left, -1, right, -2 if right.ndim > 1 else -1)
    batch = broadcast(see, [left.axes[:-2], right.axes[:-2]])
    rows = [like(left.axes[-2])] if left.ndim > 1 else []
    columns = [like(right.axes[-1])] if right.ndim > 1 else []
    out = (*batch, *rows, *columns)
    see.macs(*out, left.axes[-1])
    if batch and not (left.state or right.state) and min(left.ndim, right.ndim) > 2:
        say_heads(see, batch, [left.axes[-1], *rows, *columns])
    return out


def say_heads(see: See, batch: Axes, within: list[Axis]) -> None:
    """Products of activations, one a head: their batch dimensions are heads, the others lie within a head."""
    for axis in batch:
        see.algebra.say(axis, "head", "one product of activations a head")
    for axis in within:
        see.algebra.say(axis, "head_dim", "within a head")


def added(see: See, self: Value, **args: Any) -> Axes:
    """`addmm`, `baddbmm`, `addmv`: beta·self + alpha·(left @ right)."""
    left, right = [v for v in args.values() if isinstance(v, Value)]
    return broadcast(see, [multiply(see, left, right), self.axes])


def attention(see: See, query: Value, key: Value, value: Value, attn_mask: Value | None, **args: Any) -> Axes:
    """softmax(q kᵀ · scale + mask) v; q: (..., h, l, e), k: (..., h, s, e), v: (..., h, s, d)."""
    see.contract(query, -1, key, -1)
    see.unify(key.axes[-2], value.axes[-2])
    see.fix(key.axes[-2], "a softmax runs over it")
    heads = query.axes[:-2]
    if args["enable_gqa"] and query.shape[-3] != key.shape[-3]:
        repeats = fresh(query.shape[-3] // key.shape[-3])
        see.unify(query.axes[-3], product([key.axes[-3], repeats]))
        see.unify(key.axes[-3], value.axes[-3])
        batch = broadcast(see, [heads[:-1], key.axes[:-3], value.axes[:-3]])
        batch = (*batch, like(heads[-1]))
    else:
        batch = broadcast(see, [heads, key.axes[:-2], value.axes[:-2]])
    if attn_mask is not None:
        broadcast(see, [(*batch, query.axes[-2], key.axes[-2]), attn_mask.axes])
    if args["scale"] is None:
        see.note.defaults["scale"] = (query.axes[-1], query.shape[-1] ** -0.5)
    say_heads(see, batch, [query.axes[-1], value.axes[-1]])
    see.macs(*batch, query.axes[-2], key.axes[-2], concat([query.axes[-1], value.axes[-1]]))
    return (*batch, like(query.axes[-2]), like(value.axes[-1]))


def einsum(see: See, equation: str, tensors: list[Value], **_: Any) -> Axes | None:
    """Axes of one letter are unified; letters that are not in the result are summed over."""
    left, right = _spelled(equation.replace(" ", ""), [t.ndim for t in tensors])
    axes: dict[str, Axis] = {}
    for letters, value in zip(left.split(","), tensors, strict=True):
        for dim, letter in enumerate(letters):
            axis = value.axes[dim]
            if letter in axes and 1 not in (axis.size, axes[letter].size):
                axes[letter] = see.unify(axes[letter], axis)
            elif letter not in axes or axis.size != 1:
                axes[letter] = like(axis)
            if letter not in right:
                see.read(value, dim)
    _einsum_heads(see, left.split(","), right, axes)
    see.macs(*axes.values())
    return tuple(like(axes[letter]) for letter in right)


def _spelled(equation: str, ndims: list[int]) -> tuple[str, str]:
    """Operands and result with a letter for every dimension, those of `...` too, which stand right-aligned."""
    left, arrow, right = equation.partition("->")
    if not arrow:
        plain = "".join(sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1))
        right = ("..." if "..." in left else "") + plain
    more = [c for c in ascii_letters if c not in equation]
    operands = left.split(",")
    hidden = [n - len(o.replace("...", "")) if "..." in o else 0 for o, n in zip(operands, ndims, strict=True)]
    dots = more[: max(hidden)]
    spelled = [o.replace("...", "".join(dots[len(dots) - n :])) for o, n in zip(operands, hidden, strict=True)]
    return ",".join(spelled), right.replace("...", "".join(dots))


def _einsum_heads(see: See, operands: list[str], right: str, axes: dict[str, Axis]) -> None:
    shared = [c for c in right if all(c in letters for letters in operands)]
    if len(operands) > 1 and shared:
        say_heads(see, tuple(axes[c] for c in shared), [axes[c] for c in axes if c not in shared])


def total(see: See, self: Value, dim: list[int] | None = None, keepdim: bool = False, **_: Any) -> Axes:
    """`sum`, `norm`: removed indices add nothing."""
    dims = reduced(self, dim)
    see.read(self, *dims)
    return remaining(self, dims, keepdim)


def running(see: See, self: Value, dim: int, **_: Any) -> Axes:
    """`cumsum`: what is removed adds nothing to what comes after it."""
    see.read(self, dim)
    return tuple(map(like, self.axes))


def reduced(value: Value, dim: Any) -> list[int]:
    """The dimensions a reduction runs over, counted from zero; none given means all."""
    dims: list[int] = [dim] if isinstance(dim, int) else list(dim or range(value.ndim))
    return [d % value.ndim for d in dims] if value.ndim else []


def remaining(value: Value, dims: list[int], keepdim: bool) -> Axes:
    kept = [Axis() if d in dims else like(axis) for d, axis in enumerate(value.axes)]
    return tuple(a for d, a in enumerate(kept) if keepdim or d not in dims)


RULES = {
    "linear": linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), matmul),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), added),
    "scaled_dot_product_attention": attention,
    "einsum": einsum,
    "cumsum": running,
    **dict.fromkeys(("sum", "norm", "linalg_vector_norm", "frobenius_norm"), total),
}
