"""What each operation does to units that are zero, or that never change: one small rule an operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from prunus.graph.interpret import operate
from prunus.graph.node import Meta, Node, Ref, overload
from prunus.graph.rules import pointwise, recurrent


@dataclass(frozen=True, eq=False)
class Fact:
    """Of the units of one leaf; (size,) boolean each."""

    zero: Tensor
    still: Tensor

    def __and__(self, other: Fact) -> Fact:
        return Fact(self.zero & other.zero, self.still & other.still)


@dataclass(frozen=True, eq=False)
class Operand:
    """What an operation is given: the facts of the leaf at hand (None when it is not on this operand, or summed over),
    whether it depends on no input, and whether it is zero as a whole."""

    arg: str
    fact: Fact | None
    constant: bool
    blank: bool


_MOVES = frozenset(
    "dropout feature_dropout rrelu view reshape flatten unflatten permute transpose t movedim contiguous clone to "
    "_to_copy type_as expand squeeze unsqueeze slice select narrow max_pool1d max_pool2d max_pool3d "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d "
    "mean sum amax chunk split split_with_sizes unbind repeat repeat_interleave flip roll pixel_shuffle glu "
    "upsample_nearest2d upsample_bilinear2d detach alias getitem".split()
)
"""Operations that make zeros of zeros."""


def fact_of(node: Node, operands: list[Operand], unknown: Fact) -> Fact:
    """What is known of one leaf on the result of an operation, from what is known of it on the operands."""
    name, alone = node.plain, _is_alone(node)
    if name in RULES and not alone:
        return RULES[name](node, operands, unknown)
    return _carried(operands, unknown, _keeps_zero(node, alone))


def draws(node: Node) -> bool:
    """Does it draw random numbers?"""
    if "." not in node.op or torch.Tag.nondeterministic_seeded not in overload(node.op).tags:
        return False
    switches = [value for key, value in node.bound().items() if key in ("train", "training", "dropout_p")]
    return any(switches) or not switches


def _is_alone(node: Node) -> bool:
    """Does it act on each element of one tensor, and take nothing else but numbers?"""
    return pointwise.RULES.get(node.plain) is pointwise.pointwise and len(list(node.refs())) == 1


def _keeps_zero(node: Node, alone: bool) -> bool:
    """Is the result zero where the operands are? An operation on each element of one tensor is tried on a zero."""
    if isinstance(node.out, Meta) and not node.out.dtype.is_floating_point:
        return False
    if not alone or draws(node):
        return node.plain in _MOVES
    args, kwargs = ([torch.zeros(1) if isinstance(a, Ref) else a for a in node.args], dict(node.kwargs))
    return not any(isinstance(k, Ref) for k in kwargs.values()) and not bool(operate(node, args, kwargs).any())


Rule = Callable[[Node, list[Operand], Fact], Fact]
"""(node, its operands, the fact that nothing is known) -> the fact of the result."""


def _product(node: Node, operands: list[Operand], unknown: Fact) -> Fact:
    added = "self" if "add" in node.op else "bias"
    factors = [o for o in operands if o.arg != added]
    zero = reduce(torch.logical_or, [o.fact.zero for o in factors if o.fact], unknown.zero)
    still = zero | _all_still(factors, unknown)
    return _sum(node, [Operand("", Fact(zero, still), False, False), *(o for o in operands if o.arg == added)], unknown)


def _sum(_: Node, operands: list[Operand], unknown: Fact) -> Fact:
    zero = reduce(torch.logical_and, [o.fact.zero for o in operands if o.fact], ~unknown.zero)
    blank = all(o.fact or o.blank for o in operands)
    return Fact(zero if blank else unknown.zero, _all_still(operands, unknown))


def _all_still(operands: list[Operand], unknown: Fact) -> Tensor:
    held = [o.fact.still for o in operands if o.fact]
    if not held or not all(o.constant for o in operands if o.fact is None):
        return unknown.still
    return reduce(torch.logical_and, held)


def _norm(node: Node, operands: list[Operand], unknown: Fact) -> Fact:
    """(x - mean) / deviation * weight + bias; only where each channel has a mean of its own, still units stay still.

    With the statistics of the batch, the running mean plays no part.
    """
    bound = node.bound()
    of_batch = bound.get("training") or bound.get("use_input_stats")
    named = {o.arg: o.fact for o in operands if o.fact}
    zero, still = unknown.zero, unknown.still
    of_channels = node.plain in ("batch_norm", "instance_norm") and ("running_mean" in named or "weight" in named)
    if of_channels and "input" in named:
        zero = reduce(
            torch.logical_and, [named[n].zero for n in ("input", "running_mean")[: 1 if of_batch else 2] if n in named]
        )
        still = _all_still(operands, unknown)
    if "weight" in named:
        zero, still = zero | named["weight"].zero, still | named["weight"].zero
    bias = named.get("bias")
    return Fact(zero & bias.zero, still & bias.still) if bias else Fact(zero, still)


def _attention(_: Node, operands: list[Operand], unknown: Fact) -> Fact:
    value = next((o.fact for o in operands if o.arg == "value" and o.fact), unknown)
    return Fact(value.zero, value.zero)


def _recurrent(_: Node, operands: list[Operand], unknown: Fact) -> Fact:
    """A hidden unit whose rows of all weights and whose first state are zero stays zero; else it is not still."""
    rows = [o.fact.zero for o in operands if o.fact and o.arg not in ("input", "hx")]
    starts = [o for o in operands if o.arg == "hx"]
    if not rows or not all(o.fact or o.blank for o in starts):
        return unknown
    zero = reduce(torch.logical_and, [*rows, *(o.fact.zero for o in starts if o.fact)])
    return Fact(zero, zero)


def _joined(_: Node, operands: list[Operand], unknown: Fact) -> Fact:
    """Operands without the leaf lie beside it."""
    return reduce(Fact.__and__, [o.fact for o in operands if o.fact] or [unknown])


def _carried(operands: list[Operand], unknown: Fact, keeps_zero: bool) -> Fact:
    """Any other operation acts on each unit alone, or its leaf would be fixed."""
    held = [o.fact.zero for o in operands if o.fact]
    zero = reduce(torch.logical_and, held) if held and keeps_zero else unknown.zero
    return Fact(zero, _all_still(operands, unknown))


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d matmul mm bmm mv "
        "dot mul addmm addmv baddbmm embedding".split(),
        _product,
    ),
    **dict.fromkeys(("add", "sub"), _sum),
    **dict.fromkeys(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"), _norm),
    **dict.fromkeys(("cat", "stack"), _joined),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(recurrent.RULES, _recurrent),
}
