"""Run a model so that statistics over a dimension count only what is not zero everywhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

REDUCTIONS = {getattr(owner, name) for owner in (torch, Tensor) for name in ("mean", "var", "std")} | {torch.var_mean}
DIFFERENCES = {torch.sub, Tensor.sub, Tensor.__sub__}
SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax}


def living(x: Tensor, dim: int) -> Tensor:
    """The indices along a dimension at which something is not zero."""
    rest = [d for d in range(x.ndim) if d != dim % x.ndim]
    alive = (x != 0).any(dim=rest) if rest else x != 0
    return alive.nonzero().flatten()


def only_living(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """`x` without the slices that are zero everywhere, and which indices are left of each dimension."""
    index = {dim % x.ndim: living(x, dim) for dim in dims}
    for dim, alive in index.items():
        if 0 < len(alive) < x.shape[dim]:
            x = x.index_select(dim, alive)
    return x, index


def put_back(y: Tensor, like: Tensor, index: Mapping[int, Tensor]) -> Tensor:
    """Zeros where slices had been left out."""
    for dim, alive in index.items():
        if 0 < len(alive) < like.shape[dim]:
            shape = [*y.shape]
            shape[dim] = like.shape[dim]
            y = y.new_zeros(shape).index_copy(dim, alive, y)
    return y


class LivingStatistics(TorchFunctionMode):
    """Layer norm, RMS norm, group norm, mean, variance, softmax: over what is alive; zero where nothing is."""

    def __init__(self) -> None:
        super().__init__()
        self.means: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], dict[int, Tensor]]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm):
            return over_last(func, *args, **named)
        if func in (F.group_norm, torch.group_norm):
            return within_groups(*args, **named)
        if func in SOFTMAX:
            return over_choices(func, *args, **named)
        if func in REDUCTIONS:
            return self.reduce(func, args, named)
        if func in DIFFERENCES and len(args) == 2:
            return self.subtract(func, *args, **named)
        return func(*args, **named)

    def reduce(self, func: Callable[..., Any], args: Sequence[Any], named: dict[str, Any]) -> Any:
        x, dims = args[0], named.get("dim", args[1] if len(args) > 1 else None)
        if dims is None or isinstance(dims, bool) or not x.is_floating_point():
            return func(*args, **named)
        part, index = only_living(x, [dims] if isinstance(dims, int) else dims)
        y = func(part, *args[1:], **named)
        if isinstance(y, Tensor) and any(len(alive) < x.shape[dim] for dim, alive in index.items()):
            self.means[id(y)] = (weakref.ref(y), weakref.ref(x), index)
        return y

    def subtract(self, func: Callable[..., Any], x: Any, mean: Any, **named: Any) -> Any:
        """What has its own mean taken off stays zero where it was zero everywhere."""
        y = func(x, mean, **named)
        made, of, index = self.means.get(id(mean), (None, None, {}))
        if made is None or of is None or made() is not mean or of() is not x:
            return y
        for dim, alive in index.items():
            y = put_back(y.index_select(dim, alive), y, {dim: alive})
        return y


def over_last(
    kind: Callable[..., Tensor],
    input: Tensor,
    normalized_shape: Sequence[int],
    *ends: Tensor | None,
    **named: Any,
) -> Tensor:
    """Layer norm or RMS norm over the living indices of the last dimensions."""
    first = input.ndim - len(normalized_shape)
    part, index = only_living(input, range(first, input.ndim))
    ends = tuple(_take(end, index, first) for end in ends)
    named = {name: _take(value, index, first) for name, value in named.items()}
    return put_back(kind(part, part.shape[first:], *ends, **named), input, index)


def _take(value: Any, index: Mapping[int, Tensor], first: int) -> Any:
    """A weight or bias at the living indices; a number stays."""
    for dim, alive in index.items():
        if isinstance(value, Tensor) and 0 < len(alive) < value.shape[dim - first]:
            value = value.index_select(dim - first, alive)
    return value


def over_choices(func: Callable[..., Tensor], input: Tensor, dim: int, *rest: Any, **named: Any) -> Tensor:
    """Softmax over what a router gives any value at all."""
    part, index = only_living(input, [dim])
    return put_back(func(part, dim, *rest, **named), input, index)


def within_groups(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Group norm, each group over its living channels."""
    y = torch.zeros_like(input)
    for channels in torch.arange(input.shape[1]).chunk(num_groups):
        part = input.index_select(1, channels)
        alive = channels[living(part, 1)]
        if len(alive):
            ends = [t if t is None else t[alive] for t in (weight, bias)]
            y.index_copy_(1, alive, F.group_norm(input.index_select(1, alive), 1, *ends, eps))
    return y


class Doubled(TorchDispatchMode):
    """Casts to single precision inside a model become casts to double."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = {k: _doubled(v) for k, v in (kwargs or {}).items()}
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype == torch.float64:
            return by_expert(*args, **named)  # torch has it in single precision alone
        return func(*(_doubled(a) for a in args), **named)


def by_expert(x: Tensor, weights: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """Rows of x, sorted by expert, each by the matrix of its own expert."""
    y, start = x.new_zeros(len(x), weights.shape[2]), 0
    for weight, stop in zip(weights, offs.tolist(), strict=True):
        y[start:stop] = x[start:stop] @ weight
        start = stop
    return y


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
