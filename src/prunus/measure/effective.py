"""How many multiply-accumulates are left, were those by a zero weight left out?"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import MeasureError
from prunus.measure.constants import Constants
from prunus.measure.macs import counted, is_product
from prunus.measure.untouched import tensors
from prunus.types import Inputs


def effective_macs(model: nn.Module, example: Inputs) -> int:
    """Count the multiply-accumulates (MACs) of `macs`, but for those that multiply by a weight that is exactly zero.

    A kernel counts its MACs times the share of its weights that are not zero; the sum is rounded once. A product of two
    weights counts the terms in which neither is zero, experts (`F.grouped_mm`) each with its own rows. It is what the
    zeros could save at most, not what they do save: see `latency_ms` for that.

    A weight is a parameter, a view of one (slice, transpose), or what the call makes of parameters and buffers without
    a product: masked (`torch.nn.utils.prune`), parametrized, normalized, cast by autocast. All else counts as dense:
    zeros among activations, weights made by a product (low rank), picked or scaled by something that depends on the
    inputs, or by a tensor that is no buffer, and attention between tokens, also of a learned query.

    Raises MeasureError for a parameter on the meta device, and as `macs` does.

    >>> linear = nn.Linear(4, 3)
    >>> _ = linear.weight.data[0].zero_()
    >>> effective_macs(linear, Inputs.of(torch.ones(5, 4)))  # 5 rows, 2 * 4 weights that are not zero
    40
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise MeasureError(f"'effective_macs' reads values, but {name!r} is on the meta device; 'macs' needs none.")
    with Constants(model, is_product) as constants:
        count = counted(model, example, "effective_macs", share=lambda kernel, args: _share(kernel, args, constants))
    return round(count)


def _share(kernel: Any, args: tuple[Any, ...], constants: Constants) -> Fraction:
    """The share of a kernel's products in which no weight is zero."""
    name: str = kernel.__name__
    if "attention" in name or "attn" in name:
        return Fraction(1)
    if kernel in _LEFT:
        left, right = args[_LEFT[kernel] :][:2]
        both = constants.is_weight(left) and constants.is_weight(right)
        return _of_terms(left, right) if both else _of_weights((left, right), constants)
    if kernel is _aten._grouped_mm and args[1].ndim == 3 and args[0].ndim == 2 and constants.is_weight(args[1]):
        return _of_experts(args[1], args[2])
    factors = args[1:3] if "conv" in name or "rnn" in name else args  # these also get states, which are no weights
    return _of_weights((tensor for tensor in tensors(factors) if tensor.ndim >= 2), constants)  # a bias has one dim


def _of_weights(factors: Iterable[Tensor], constants: Constants) -> Fraction:
    """Each weight takes part in equally many products."""
    weights = [tensor for tensor in factors if constants.is_weight(tensor)]
    return _ratio(sum(int(weight.count_nonzero()) for weight in weights), sum(weight.numel() for weight in weights))


def _of_terms(left: Tensor, right: Tensor) -> Fraction:
    """Of the terms left[i, k] right[k, j], how many are not zero?"""
    rows = left if left.ndim > 1 else left[None]
    columns = right if right.ndim > 1 else right[:, None]
    terms = rows.count_nonzero(-2) * columns.count_nonzero(-1)
    return _ratio(int(terms.sum()), rows.numel() * columns.shape[-1])


def _of_experts(matrices: Tensor, ends: Tensor) -> Fraction:
    """The rows up to ends[0] meet the first matrix, those from there to ends[1] the second, and so on."""
    rows = ends.long().diff(prepend=ends.new_zeros(1, dtype=torch.long))
    left = int((rows * matrices.count_nonzero((1, 2))).sum())
    return _ratio(left, int(rows.sum()) * matrices[0].numel())


def _ratio(part: int, whole: int) -> Fraction:
    return Fraction(part, whole) if whole else Fraction(1)


_aten: Any = torch.ops.aten

# Where the two factors of a product begin among its arguments: the first of `addmm` is added.
_LEFT = {
    **dict.fromkeys((_aten.mm, _aten.bmm, _aten.mv, _aten.dot, _aten.vdot, _aten._scaled_mm), 0),
    **dict.fromkeys((_aten.addmm, _aten.addmm_, _aten.baddbmm, _aten.addmv, _aten.addmv_), 1),
}
