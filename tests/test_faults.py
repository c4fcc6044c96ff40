"""The proof can fail: faults put into the rules, the cut and the surgery by hand are each caught, none goes through.

Each network is first shrunk and proven as it is, then once more with the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest
import torch
import torch.nn.functional as F
from nets import Fn, Recipe, Step, build, parameter
from torch import Tensor, nn
from units import zeroed

from prunus.allocate import allocate
from prunus.apply import build as building
from prunus.apply import check as checking
from prunus.apply import surgery
from prunus.apply.shrink import shrink
from prunus.apply.verify import verify
from prunus.criteria import random
from prunus.errors import ProofError
from prunus.graph import leaves, reference, width
from prunus.graph.axes import Algebra, Axes, Axis, fresh, product
from prunus.graph.group import group
from prunus.graph.interpret import GraphModel
from prunus.graph.rules import RULES, contract, normalize, pointwise, shape
from prunus.graph.see import See, Value
from prunus.graph.trace import trace
from prunus.plan import Plan
from prunus.score import score
from prunus.types import Budget

Rule: TypeAlias = Callable[..., Any]
Break: TypeAlias = Callable[[pytest.MonkeyPatch], None]
Made: TypeAlias = "tuple[nn.Module, Tensor]"


def plan_of(model: nn.Module, inputs: Tensor) -> Plan:
    """Half of every group, others in each."""
    groups = group(trace(model, inputs))
    return allocate(groups, score(model, groups, random, seed=1), Budget("units", at_most=0.5), scope="layer")


def unequal(model: nn.Module, inputs: Tensor) -> Plan:
    """Three units of one group, one of the other."""
    groups = group(trace(model, inputs))
    counts = dict(zip((each.name for each in groups), (3, 1), strict=True))
    return Plan(groups, {name: torch.arange(groups[name].size) < count for name, count in counts.items()})


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


def attending(a: int, b: int, c: int) -> Made:
    model, inputs = build(Recipe("ids", (Step("attention", a, b, c),)))
    return awake(model), inputs


def fused() -> Made:
    return attending(a=1, b=1, c=0)


def written_out() -> Made:
    return attending(a=1, b=3, c=0)


def fewer_keys() -> Made:
    return attending(a=3, b=3, c=4)


def turned() -> Made:
    """As many tokens as features, so that their order can be mistaken."""
    body = Fn(lambda x, up: up(x.transpose(1, 2)).transpose(1, 2), up=nn.Linear(6, 6))
    return awake(nn.Sequential(nn.Embedding(7, 6), body, nn.ReLU(), nn.Linear(6, 3))), torch.randint(0, 7, (3, 6))


class Helped(nn.Module):
    """A second head, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).relu()
        return self.head(y) + self.aux(y) if self.training else self.head(y)


def helped() -> Made:
    return awake(Helped()), torch.randn(5, 4)


def untrained() -> Made:
    """Norms as they are at first: identities, which hide an index."""
    torch.manual_seed(1)
    body = (nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1))
    return nn.Sequential(*body).eval(), torch.randn(2, 2, 4, 4)


def scaled() -> Made:
    gained = Fn(lambda x, gain: x * gain[0], gain=parameter(8))
    return awake(nn.Sequential(nn.Linear(4, 8), gained, nn.ReLU(), nn.Linear(8, 3))), torch.randn(5, 4)


def idle() -> nn.Module:
    """A branch that comes to nothing."""
    return awake(Fn(lambda x, a, b: x + 0 * b(a(x)), a=nn.Linear(8, 6), b=nn.Linear(6, 8)))


def half_idle() -> Made:
    return awake(nn.Sequential(nn.Linear(4, 8), idle(), nn.Linear(8, 3))), torch.randn(5, 4)


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


def backward_views(patch: pytest.MonkeyPatch) -> None:
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


def uncontracted(see: See, self: Value, other: Value) -> Axes:
    """A product that does not say that what it sums over indexes alike."""
    left, right = self, other
    batch = pointwise.broadcast(see, [left.axes[:-2], right.axes[:-2]])
    return (*batch, Axis(left.axes[-2].parts), Axis(right.axes[-1].parts))


def own_scale(see: See, **args: Any) -> Axes:
    """An attention that scales by the heads it has now."""
    made = contract.attention(see, **args)
    see.note.defaults.clear()
    return made


def unlooked(see: See, weight: Value, indices: Value, **_: Any) -> Axes:
    """A lookup whose result has nothing to do with its table's width."""
    return (*(Axis(axis.parts) for axis in indices.axes), fresh(weight.shape[1]))


def repeated_outermost(see: See, self: Value, repeats: int, dim: int, **_: Any) -> Axes:
    again = fresh(repeats)
    see.size("repeats", again)
    return shape._with(self, dim, product([again, self.axes[dim]]))


def without_facts(kind: str, reason: str = "") -> Break:
    """What the rules say of some axes is not heard."""

    def broken(patch: pytest.MonkeyPatch) -> None:
        original = Algebra.say

        def say(self: Algebra, axis: Axis, said: Any, why: str) -> None:
            if said != kind or reason not in why:
                original(self, axis, said, why)

        patch.setattr(Algebra, "say", say)

    return broken


def no_inexactness(patch: pytest.MonkeyPatch) -> None:
    without_facts("inexact")(patch)
    patch.setattr(leaves, "inexact_leaves", lambda program, inferred: {})


def not_counting(name: str) -> Break:
    """The reference that reads removed units as zero, but counts them."""
    return lambda patch: patch.delitem(reference._COUNTING, name)


def rolled_cut(state: str) -> Break:
    """One state tensor cut one unit off, in the graph and in its check alike."""

    def broken(patch: pytest.MonkeyPatch) -> None:
        original = building.cut_one

        def cut_one(graph: Any, name: str, tensor: Tensor, keep: Any, alive: Any) -> Tensor:
            return original(graph, name, tensor.roll(1, 0) if name == state else tensor, keep, alive)

        patch.setattr(building, "cut_one", cut_one)
        patch.setattr(checking, "cut_one", cut_one)

    return broken


def nothing_cut(patch: pytest.MonkeyPatch) -> None:
    for module in (building, reference, width):
        patch.setattr(module, "touched", lambda axis, keep: False)


@dataclass(frozen=True)
class Fault:
    """A network, what is broken, what the proof says of it, and the plan by which it shows."""

    net: Callable[[], Made]
    broken: Break
    said: str
    plan: Callable[[nn.Module, Tensor], Plan] = plan_of


DIFFERS = "Check 'user' failed"
STUCK = "The smaller model does not run"
FORGOTTEN = {
    "bias of a linear layer": Fault(dense, rule("linear", blind_to(contract.linear, "bias")), STUCK),
    "bias of a convolution": Fault(convs, rule("conv2d", blind_to(contract.convolution, "bias")), STUCK),
    "running mean": Fault(convs, rule("batch_norm", blind_to(normalize.batch_norm, "running_mean")), STUCK),
    "scale of a norm": Fault(normed, rule("layer_norm", blind_to(normalize.layer_norm, "weight")), STUCK),
    "other operand of an addition": Fault(added, rule("add", first_operand), DIFFERS),
    "what a product sums over": Fault(written_out, rule("matmul", uncontracted), DIFFERS),
    "width of a lookup table": Fault(turned, rule("embedding", unlooked), STUCK),
    "that contractions read removed units as zero": Fault(dense, no_op(See, "read"), DIFFERS),
    "sizes in the code": Fault(written_out, no_op(See, "size"), STUCK),
    "that halves stay equal": Fault(halved, no_op(See, "together"), STUCK, unequal),
    "that inputs are fixed": Fault(dense, without_facts("fixed", "an input of the model"), STUCK),
    "that outputs are fixed": Fault(dense, without_facts("fixed", "an output of the model"), DIFFERS),
    "that a softmax fixes": Fault(softened, rule("softmax", unread), DIFFERS),
    "the scale of whole heads": Fault(fused, rule("scaled_dot_product_attention", own_scale), DIFFERS),
    "that statistics are inexact": Fault(summed, no_inexactness, "Check 'zeroed' failed"),
    "to cut": Fault(dense, nothing_cut, "Check 'zeroed' failed"),
}
MISREAD = {
    "groups of a convolution stand inside": Fault(grouped, rule("conv2d", swapped_groups), DIFFERS),
    "a transposed convolution as a plain one": Fault(upward, rule("conv_transpose2d", contract.convolution), DIFFERS),
    "a view backward": Fault(convs, backward_views, DIFFERS),
    "a concatenation backward": Fault(joined, rule("cat", backward_cat), DIFFERS),
    "a slice one index early": Fault(sliced, rule("slice", cut_early), STUCK),
    "a shuffle that leaves the order": Fault(shuffled, rule("channel_shuffle", unmixed), DIFFERS),
    "a turn that leaves the order": Fault(turned, rule("transpose", unread), STUCK),
    "a repetition outermost": Fault(fewer_keys, rule("repeat_interleave", repeated_outermost), DIFFERS),
    "a mean that counts what is removed": Fault(averaged, not_counting("mean"), DIFFERS),
    "a layer norm that counts what is removed": Fault(normed, not_counting("layer_norm"), DIFFERS),
    "a group norm that counts what is removed": Fault(group_normed, not_counting("group_norm"), DIFFERS),
    "a weight one unit off": Fault(dense, rolled_cut("0.weight"), DIFFERS),
    "an identity norm one unit off": Fault(untrained, rolled_cut("1.weight"), "Check 'redrawn' failed"),
    "a head of training one unit off": Fault(helped, rolled_cut("aux.bias"), "Check 'train' failed"),
}


def assert_caught(fault: Fault, patch: pytest.MonkeyPatch) -> None:
    model, inputs = fault.net()
    shrink(model, plan_of(model, inputs))
    fault.broken(patch)
    with pytest.raises(ProofError, match=fault.said):
        shrink(model, fault.plan(model, inputs))


@pytest.mark.parametrize("what", FORGOTTEN)
def test_nothing_is_forgotten_in_silence(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(FORGOTTEN[what], monkeypatch)


@pytest.mark.parametrize("what", MISREAD)
def test_nothing_is_misread_in_silence(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(MISREAD[what], monkeypatch)


def test_a_size_of_the_code_that_is_taken_for_another_is_caught_when_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of a proof have their sizes rewritten, so the rewriting is checked where nothing is cut yet."""
    model, inputs = padded()
    shrink(model, plan_of(model, inputs))
    rule("pad", pad_on_the_other_side)(monkeypatch)
    with pytest.raises(AssertionError, match=r"rule says .*pad.* is 2, captured 1"):
        trace(model, inputs)


# The user's class


def proven(net: Callable[[], Made]) -> tuple[nn.Module, nn.Module, Plan, Tensor]:
    model, inputs = net()
    plan = plan_of(model, inputs)
    return model, shrink(model, plan), plan, inputs


@pytest.mark.parametrize("net", [grouped, written_out, normed])
def test_an_attribute_that_is_not_edited_is_not_returned(
    net: Callable[[], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class that cannot be cut right gives way to the graph, which is."""
    assert not isinstance(proven(net)[1], GraphModel)
    monkeypatch.setattr(surgery, "apply_edits", lambda model, edits: None)
    model, small, plan, inputs = proven(net)
    assert isinstance(small, GraphModel)
    if all(each.exact for each in plan.groups):
        torch.testing.assert_close(small(inputs), zeroed(model, plan)(inputs))


def test_a_wrong_number_of_groups_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups become one; what says two does not agree with the graph."""
    assert proven(grouped)[1][1].groups == 1
    original = surgery.apply_edits

    def one_off(model: nn.Module, edits: list[surgery.Edit]) -> None:
        original(model, [replace(e, new=e.new + 1) if e.key == "groups" else e for e in edits])

    monkeypatch.setattr(surgery, "apply_edits", one_off)
    assert isinstance(proven(grouped)[1], GraphModel)


def test_state_put_in_the_wrong_place_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    original = surgery.replace_state

    def rolled(model: nn.Module, state: Any, aliases: Any) -> None:
        original(model, {name: tensor.roll(1, 0) for name, tensor in state.items()}, aliases)

    monkeypatch.setattr(surgery, "replace_state", rolled)
    assert isinstance(proven(dense)[1], GraphModel)


# The smaller model at hand


def test_one_weight_changed_by_one_part_in_a_million_is_seen() -> None:
    model, small, plan, _ = proven(dense)
    with torch.no_grad():
        small[0].weight[1, 2] *= 1 + 1e-6
    with pytest.raises(ProofError, match=r"'0.weight' of the smaller model is not what the plan cuts it to"):
        verify(model, small, plan)


def test_a_unit_too_few_is_seen() -> None:
    model, small, plan, _ = proven(dense)
    small[2].bias = nn.Parameter(small[2].bias[:2])
    with pytest.raises(ProofError, match=r"'2.bias' .*: found \(2,\), expected \(3,\) with the original's values"):
        verify(model, small, plan)


def test_a_tensor_that_is_gone_is_seen() -> None:
    model, small, plan, _ = proven(dense)
    small[2].bias = None
    with pytest.raises(ProofError, match=r"'2.bias' of the smaller model .*: found nothing"):
        verify(model, small, plan)


def test_another_function_on_the_same_weights_is_seen() -> None:
    model, small, plan, _ = proven(dense)
    small[1] = nn.GELU()
    with pytest.raises(ProofError, match="Check 'module' failed"):
        verify(model, small, plan)


def test_the_plan_of_another_cut_is_seen() -> None:
    model, small, plan, _ = proven(dense)
    other = Plan(plan.groups, {name: mask.roll(1) for name, mask in plan.keep.items()})
    with pytest.raises(ProofError, match="is not what the plan cuts it to"):
        verify(model, small, other)


# What a proof says


def test_a_proof_tells_the_error_of_each_check() -> None:
    model, small, plan, _ = proven(convs)
    proof = verify(model, small, plan)
    assert set(proof.errors) == {"user", "redrawn", "train", "zeroed", "module"}
    assert all(error <= proof.accepted[name] for name, error in proof.errors.items())
    assert {proof.accepted[name] for name in ("user", "redrawn", "train", "zeroed")} == {1e-9}
    assert proof.control > 1000 * 1e-9
    assert proof.unwitnessed == ()
    assert "control" in str(proof)


def test_groups_that_are_not_exact_are_not_compared_with_zeros() -> None:
    assert "zeroed" not in verify(*proven(normed)[:3]).errors


def test_a_group_that_moves_nothing_is_named() -> None:
    model, small, plan, _ = proven(half_idle)
    proof = verify(model, small, plan)
    assert proof.unwitnessed == ("1.a",)
    assert "not witnessed: 1.a" in str(proof)


def test_an_output_that_no_cut_moves_proves_nothing() -> None:
    model, inputs = idle(), torch.randn(5, 8)
    with pytest.raises(ProofError, match=r"The check is blind here.*output does not depend on the groups"):
        shrink(model, plan_of(model, inputs))


def test_no_group_cut_needs_no_control() -> None:
    model, inputs = dense()
    groups = group(trace(model, inputs))
    everything = Plan(groups, {each.name: torch.ones(each.size, dtype=torch.bool) for each in groups})
    assert verify(model, shrink(model, everything), everything).control == float("inf")
