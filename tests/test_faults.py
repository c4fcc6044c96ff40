"""The proof can fail: faults put into the rules, the cut and the surgery by hand are each caught, none goes through.

Each network is first shrunk and proven as it is, then once more with the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
import torch
import torch.nn.functional as F
from nets import Fn, Recipe, Step, build, parameter
from pytest import MonkeyPatch
from torch import Tensor, nn

from prunus.allocate import allocate
from prunus.apply import build as building
from prunus.apply import check as checking
from prunus.apply.shrink import shrink
from prunus.criteria import random
from prunus.errors import ProofError
from prunus.graph import leaves, reference, width
from prunus.graph.axes import Algebra, Axes, Axis, fresh, product
from prunus.graph.group import group
from prunus.graph.groups import Groups
from prunus.graph.rules import RULES, contract, normalize, pointwise, shape
from prunus.graph.see import See, Value
from prunus.graph.trace import trace
from prunus.plan import Plan
from prunus.score import score
from prunus.types import Budget

Rule: TypeAlias = Callable[..., Any]
Break: TypeAlias = Callable[[MonkeyPatch], None]
Made: TypeAlias = "tuple[nn.Module, Tensor]"


def plan_of(model: nn.Module, inputs: Tensor) -> Plan:
    groups: Groups = group(trace(model, inputs))
    return allocate(groups, score(model, groups, random, seed=3), Budget("units", at_most=0.5), scope="layer")


def awake(model: nn.Module) -> nn.Module:
    """No identity norms, no zero biases: nothing by which the user's own weights would hide a fault."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape).add_(0.3))
    return model.eval()


# Small networks


def dense() -> Made:
    return awake(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))), torch.randn(5, 4)


def convs() -> Made:
    body = (
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    return awake(nn.Sequential(*body)), torch.randn(2, 2, 4, 4)


def grouped() -> Made:
    body = (nn.Conv2d(2, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 3, 1))
    return awake(nn.Sequential(*body)), torch.randn(2, 2, 4, 4)


def upward() -> Made:
    body = (nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 2, stride=2), nn.ReLU(), nn.Conv2d(4, 3, 1))
    return awake(nn.Sequential(*body)), torch.randn(2, 2, 3, 3)


def joined() -> Made:
    body = Fn(lambda x, a, b: torch.cat([a(x), b(x).relu()], 1), a=nn.Linear(4, 6), b=nn.Linear(4, 6))
    return awake(nn.Sequential(body, nn.Linear(12, 3))), torch.randn(5, 4)


def halved() -> Made:
    """Two halves of unlike use, which the code takes to be equally long."""
    ends = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}
    body = Fn(lambda x, a, b: a((y := x.chunk(2, 1))[0]) + b(y[1].tanh()), **ends)
    return awake(nn.Sequential(nn.Linear(5, 8), body)), torch.randn(5, 5)


def sliced() -> Made:
    body = Fn(lambda x: torch.cat([x[:, 3:], x[:, :3].tanh()], 1))
    return awake(nn.Sequential(nn.Linear(4, 9), body, nn.Linear(9, 3))), torch.randn(5, 4)


def added() -> Made:
    body = Fn(lambda x, a, b: a(x) + b(x).tanh(), a=nn.Linear(4, 6), b=nn.Linear(4, 6))
    return awake(nn.Sequential(body, nn.Linear(6, 3))), torch.randn(5, 4)


def padded() -> Made:
    body = Fn(lambda x, a, b: F.pad(a(x), (1, 2)) + b(x), a=nn.Linear(4, 5), b=nn.Linear(4, 8))
    return awake(nn.Sequential(body, nn.Linear(8, 3))), torch.randn(5, 4)


def shuffled() -> Made:
    body = (nn.Conv2d(2, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1, groups=2), nn.ReLU(), nn.Conv2d(8, 3, 1))
    return awake(nn.Sequential(*body)), torch.randn(2, 2, 3, 3)


def normed() -> Made:
    return awake(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))), torch.randn(5, 4)


def group_normed() -> Made:
    body = (nn.Conv2d(2, 8, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 3, 1))
    return awake(nn.Sequential(*body)), torch.randn(2, 2, 3, 3)


def summed() -> Made:
    body = Fn(lambda x, last: last(x) * torch.sigmoid(x).sum(1, keepdim=True), last=nn.Linear(8, 3))
    return awake(nn.Sequential(nn.Linear(4, 8), body)), torch.randn(5, 4)


def averaged() -> Made:
    body = Fn(lambda x, last: last(x) + x.mean(1, keepdim=True), last=nn.Linear(8, 3))
    return awake(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), body)), torch.randn(5, 4)


def softened() -> Made:
    """Two groups, one of which a softmax must fix."""
    body = (nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Softmax(1), nn.Linear(6, 3))
    return awake(nn.Sequential(*body)), torch.randn(5, 4)


def heads(core: int = 0, kind: int = 0) -> Made:
    model, inputs = build(Recipe("ids", (Step("attention", a=1, b=1 + 2 * core, c=kind),)))
    return awake(model), inputs


def written_out() -> Made:
    return heads(core=1)


def fewer_keys() -> Made:
    model, inputs = build(Recipe("ids", (Step("attention", a=3, b=3, c=4),)))
    return awake(model), inputs


def scaled() -> Made:
    gained = Fn(lambda x, gain: x * gain[0], gain=parameter(8))
    return awake(nn.Sequential(nn.Linear(4, 8), gained, nn.ReLU(), nn.Linear(8, 3))), torch.randn(5, 4)


# Ways to break


def rule(name: str, made: Rule) -> Break:
    return lambda patch: patch.setitem(RULES, name, made)


def blind_to(original: Rule, argument: str) -> Rule:
    """The rule that does not see one argument."""
    return lambda see, **args: original(see, **{**args, argument: None})


def no_op(owner: Any, name: str) -> Break:
    return lambda patch: patch.setattr(owner, name, lambda *args, **kwargs: None)


def swapped_groups(see: See, input: Value, weight: Value, bias: Value | None, groups: int, **_: Any) -> Axes:
    """Output channels as (o g) instead of (g o)."""
    inner, outer = fresh(groups), fresh(weight.shape[0] // groups)
    see.size("groups", inner)
    see.unify(input.axes[1], product([inner, weight.axes[1]]))
    see.unify(weight.axes[0], product([outer, inner]))
    return contract._convolved(see, input, weight, bias, outer, inner, summed=weight.axes[1])


def backward_views(patch: MonkeyPatch) -> None:
    """The channels of a flattened map taken to be the innermost part."""
    original = Algebra.regroup

    def regroup(self: Algebra, axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
        return original(self, (axes[0], *reversed(axes[1:])), shape)

    patch.setattr(Algebra, "regroup", regroup)


def backward_cat(see: See, tensors: list[Value], dim: int) -> Axes:
    return shape.cat(see, tensors[::-1], dim)


def cut_early(see: See, self: Value, dim: int, start: int | None, end: int | None, step: int) -> Axes:
    """The second piece of a slice taken to begin one index before it does."""
    if start:
        widths = [start - 1, self.shape[dim] - start, 1]
        return shape._with(self, dim, shape.pieces_of(see, self.axes[dim], widths, "it is sliced")[1])
    return shape.slice_(see, self, dim, start, end, step)


def pad_on_the_other_side(see: See, self: Value, pad: list[int], **args: Any) -> Axes:
    return shape.pad(see, self, [pad[1], pad[0], *pad[2:]], **args)


def unmixed(see: See, self: Value, groups: int) -> Axes:
    return tuple(Axis(axis.parts) for axis in self.axes)


def first_operand(see: See, **args: Any) -> Axes:
    """An addition that takes the axes of its first operand and does not say that the other indexes alike."""
    return tuple(Axis(axis.parts) for axis in pointwise.tensors_in(args)[0].axes)


def unread(see: See, **args: Any) -> Axes:
    return pointwise.same(see, **args)


def contracted_as_batch(see: See, left: Value, right: Value) -> Axes:
    """A product that does not say that what it sums over indexes alike."""
    batch = pointwise.broadcast(see, [left.axes[:-2], right.axes[:-2]])
    return (*batch, Axis(left.axes[-2].parts), Axis(right.axes[-1].parts))


def repeated_outermost(see: See, self: Value, repeats: int, dim: int, **_: Any) -> Axes:
    again = fresh(repeats)
    see.size("repeats", again)
    return shape._with(self, dim, product([again, self.axes[dim]]))


def without_facts(kind: str, reason: str = "") -> Break:
    """What the rules say of some axes is not heard."""

    def broken(patch: MonkeyPatch) -> None:
        original = Algebra.say

        def say(self: Algebra, axis: Axis, said: Any, why: str) -> None:
            if said != kind or reason not in why:
                original(self, axis, said, why)

        patch.setattr(Algebra, "say", say)

    return broken


def no_inexactness(patch: MonkeyPatch) -> None:
    without_facts("inexact")(patch)
    patch.setattr(leaves, "inexact_leaves", lambda program, inferred: {})


def not_counting(name: str) -> Break:
    """The reference that reads removed units as zero, but counts them."""
    return lambda patch: patch.delitem(reference._COUNTING, name)


def rolled_cut(state: str) -> Break:
    """One state tensor cut one unit off, in the graph and in its check alike."""

    def broken(patch: MonkeyPatch) -> None:
        original = building.cut_one

        def cut_one(graph: Any, name: str, tensor: Tensor, keep: Any, alive: Any) -> Tensor:
            return original(graph, name, tensor.roll(1, 0) if name == state else tensor, keep, alive)

        patch.setattr(building, "cut_one", cut_one)
        patch.setattr(checking, "cut_one", cut_one)

    return broken


def nothing_cut(patch: MonkeyPatch) -> None:
    for module in (building, reference, width):
        patch.setattr(module, "touched", lambda axis, keep: False)


@dataclass(frozen=True)
class Fault:
    """A network, what is broken, and what the proof says of it."""

    net: Callable[[], Made]
    broken: Break
    said: str


_DIFFERS = r"Check '(user|redrawn)' failed"
_STUCK = "does not run"
FAULTS: dict[str, Fault] = {
    "the bias of a linear layer is forgotten": Fault(dense, rule("linear", blind_to(contract.linear, "bias")), _STUCK),
    "the bias of a convolution is forgotten": Fault(
        convs, rule("conv2d", blind_to(contract.convolution, "bias")), _STUCK
    ),
    "a running mean is forgotten": Fault(
        convs, rule("batch_norm", blind_to(normalize.batch_norm, "running_mean")), _STUCK
    ),
    "the scale of a norm is forgotten": Fault(
        normed, rule("layer_norm", blind_to(normalize.layer_norm, "weight")), _STUCK
    ),
    "the operands of an addition are not unified": Fault(added, rule("add", first_operand), _STUCK),
    "what a product sums over is not unified": Fault(
        written_out, rule("matmul", lambda see, **a: contracted_as_batch(see, *a.values())), _STUCK
    ),
    "groups of a convolution stand inside": Fault(grouped, rule("conv2d", swapped_groups), _DIFFERS),
    "a transposed convolution is read as a plain one": Fault(
        upward, rule("conv_transpose2d", contract.convolution), _DIFFERS
    ),
    "a view takes its factors backward": Fault(convs, backward_views, _DIFFERS),
    "a concatenation is read backward": Fault(joined, rule("cat", backward_cat), _DIFFERS),
    "a slice begins one index early": Fault(sliced, rule("slice", cut_early), _DIFFERS),
    "zeros are padded on the other side": Fault(padded, rule("pad", pad_on_the_other_side), _DIFFERS),
    "a shuffle leaves the order": Fault(shuffled, rule("channel_shuffle", unmixed), _DIFFERS),
    "a repetition stands outermost": Fault(fewer_keys, rule("repeat_interleave", repeated_outermost), _DIFFERS),
    "a softmax fixes nothing": Fault(softened, rule("softmax", unread), _DIFFERS),
    "no contraction reads removed units as zero": Fault(dense, no_op(See, "read"), _DIFFERS),
    "a mean counts what is removed": Fault(averaged, not_counting("mean"), _DIFFERS),
    "a layer norm counts what is removed": Fault(normed, not_counting("layer_norm"), _DIFFERS),
    "a group norm counts what is removed": Fault(group_normed, not_counting("group_norm"), _DIFFERS),
    "sizes are not rewritten": Fault(written_out, no_op(See, "size"), _STUCK),
    "halves need not stay equal": Fault(halved, no_op(See, "together"), _STUCK),
    "inputs may be pruned": Fault(dense, without_facts("fixed", "an input of the model"), _STUCK),
    "outputs may be pruned": Fault(dense, without_facts("fixed", "an output of the model"), _DIFFERS),
    "all groups are taken to be exact": Fault(summed, no_inexactness, "Check 'zeroed' failed"),
    "a weight is cut one unit off": Fault(dense, rolled_cut("2.bias"), _DIFFERS),
    "nothing is cut at all": Fault(dense, nothing_cut, "The check is blind here"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_does_not_go_through(name: str, monkeypatch: MonkeyPatch) -> None:
    fault = FAULTS[name]
    model, inputs = fault.net()
    shrink(model, plan_of(model, inputs))
    fault.broken(monkeypatch)
    with pytest.raises(ProofError, match=fault.said):
        shrink(model, plan_of(model, inputs))
