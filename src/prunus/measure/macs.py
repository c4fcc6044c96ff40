"""How many multiply-accumulates does one example call take?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import prod
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from prunus.errors import MeasureError
from prunus.graph.unfused import unfused
from prunus.measure.untouched import fresh
from prunus.types import Inputs

Formula: TypeAlias = Callable[..., Any]
Share: TypeAlias = Callable[[Any, tuple[Any, ...]], Fraction]
"""Given a kernel and its arguments, the share of its multiply-accumulates that counts, in [0, 1]."""


def macs(model: nn.Module, example: Inputs) -> int:
    """Count the multiply-accumulates of `model(*example.args, **example.kwargs)`, as it is now and on its own device.

    Counted are matrix products, convolutions, attention and recurrent layers: a (m, k) by (k, n) product is m k n, a
    bias, an activation, a normalization or a lookup is 0. Zeroed weights count; attention counts the whole square, also
    under a causal mask. The call is really made, once and without gradients, so control flow that depends on the data
    counts as it went; a model on the meta device runs there.

    Raises MeasureError if the call runs a kernel that multiplies and accumulates, but for which there is no formula.

    >>> macs(nn.Conv2d(4, 6, 3, groups=2), Inputs.of(torch.ones(1, 4, 5, 5)))  # 6 * 3 * 3 outputs of 2 * 3 * 3 each
    972

    Source: torch.utils.flop_counter (PyTorch), with formulas for the fused kernels it leaves out; 2 FLOPs a MAC.
    """
    return int(counted(model, example, "macs"))


def counted(model: nn.Module, example: Inputs, metric: str, *, share: Share | None = None) -> Fraction:
    """The multiply-accumulates of one call; of those of a kernel only its `share`, if given, exactly and unrounded.

    `share` is asked when the kernel has run. Raises MeasureError, in the name of `metric`, as `macs` does.

    >>> counted(nn.Linear(4, 2), Inputs.of(torch.ones(3, 4)), "macs", share=lambda kernel, args: Fraction(1, 5))
    Fraction(24, 5)
    """
    call = fresh(example)
    unknown = _Unknown()
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    if share is not None:
        formulas: dict[Any, Formula] = counter.flop_registry
        counter.flop_registry = {kernel: _shared(kernel, formulas[kernel], share) for kernel in formulas}
    with torch.no_grad(), unfused(), unknown, counter:
        model(*call.args, **call.kwargs)
    if unknown.kernels:
        raise MeasureError(
            f"{metric!r} has no formula for {', '.join(sorted(unknown.kernels))}, which this model calls. Give one "
            f"with torch.utils.flop_counter.register_flop_formula, or leave {metric!r} out of metrics."
        )
    return Fraction(counter.get_total_flops()) / 2


def is_product(kernel: Any) -> bool:
    """Does `macs` count this kernel, such as torch.ops.aten.mm?"""
    return kernel in flop_registry or kernel in _FORMULAS


def _shared(kernel: Any, formula: Formula, share: Share) -> Formula:
    return lambda *args, **kwargs: formula(*args, **kwargs) * share(kernel, args)


class _Unknown(TorchDispatchMode):
    """Collects the kernels which, by their name, multiply and accumulate, but have no formula."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.kernels: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = getattr(func, "overloadpacket", func)  # torch.cond and its like are no overloads
        words = set(packet.__name__.split("_"))
        if not is_product(packet) and words & _PRODUCTS and not words & _HARMLESS:
            self.kernels.add(str(packet))
        return func(*args, **(kwargs or {}))


# Formulas take the shapes of the kernel's arguments and, as the counter's own, give FLOPs.
Shape: TypeAlias = Sequence[int]


def _added_product(_: Shape, a: Shape, b: Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(a) * b[-1]


def _vector_product(a: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(a)


def _added_vector_product(_: Shape, a: Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(a)


def _grouped_product(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Each row of `a` meets one matrix of `b`; only if `b` alone is split, `a` is the one with a matrix a group."""
    shared = a[0] if len(a) == 3 and len(b) == 2 else 1
    return 2 * prod(a) * b[-1] // shared


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(inputs: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return 2 * prod(inputs[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


def _recurrent_layer(inputs: Shape, to_hidden: Shape, from_hidden: Shape, *_: Any, **__: Any) -> int:
    return _recurrent(inputs, (to_hidden, from_hidden))


_aten: Any = torch.ops.aten
_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten.addmm_: _added_product,
    _aten.baddbmm_: _added_product,
    _aten.dot: _vector_product,
    _aten.vdot: _vector_product,
    _aten.mv: _vector_product,
    _aten.addmv: _added_vector_product,
    _aten.addmv_: _added_vector_product,
    _aten._grouped_mm: _grouped_product,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_fused_attention_overrideable: _attention,
    _aten.mkldnn_rnn_layer: _recurrent_layer,
    _aten._cudnn_rnn: _recurrent,
    _aten.miopen_rnn: _recurrent,
}

# Words in the names of kernels that multiply and accumulate; and of those that only prepare or finish such work.
_PRODUCTS = {
    *("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "matmul", "linear", "trilinear"),
    *("conv", "conv1d", "conv2d", "conv3d", "convolution", "rnn", "lstm", "gru", "attention", "attn"),
}
_HARMLESS = {"thnn", "prepack", "unpack", "reorder", "flatten"}
