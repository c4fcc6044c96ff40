"""Constants of removed units move into biases, and the smaller model computes what the original computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from halves import Net, draw
from hypothesis import assume, given
from nets import Conv1D, Recipe, recipes
from test_from_zeros import doubled, doubles, gone, zero, zero_at_random
from test_laws import laws, run, seeds
from torch import Tensor, nn

from prunus import Element, allocate, fold_constants, group, plan_from_zeros, score, shrink, trace
from prunus.criteria import magnitude
from prunus.errors import PlanError, ProofError
from prunus.plan import Plan
from prunus.types import Budget


def dead(model: nn.Module, inputs: Tensor, *filters: str) -> tuple[nn.Module, Plan]:
    """The model in float64 and eval mode, vectors away from zero, every other filter zero; the plan without these."""
    doubled(model)
    for name in filters:
        zero(model, list(range(1, len(model.get_parameter(name)), 2)), name)
    return model, plan_from_zeros(model, trace(model, inputs.double()))


def assert_folds(model: nn.Module, plan: Plan, inputs: Tensor, **options: Any) -> nn.Module:
    """The folded copy and its smaller model compute what the model does, on inputs that nothing has seen."""
    assert sum(plan.provenance["constants"].values())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    folded = fold_constants(model, plan, **options)
    small = shrink(folded, plan)
    assert type(folded) is type(model)
    assert {n: t.shape for n, t in folded.state_dict().items()} == {n: t.shape for n, t in before.items()}
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    for x in (inputs.double(), inputs.double().flip(0) * 3 + 1):
        expected = run(model, x)
        torch.testing.assert_close(run(folded, x), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(run(small, x), expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(run(shrink(model, plan, verify=False), x), expected, rtol=1e-6, atol=1e-6)
    return small


C, B, R = nn.Conv2d, nn.BatchNorm2d, nn.ReLU
IMAGE, VECTOR = draw(2, 3, 8, 8), draw(2, 8)


def residual() -> nn.Module:
    parts = {"stem": C(3, 6, 1), "one": C(6, 6, 1), "end": C(6, 2, 1)}
    return Net(lambda m, x: m.end(torch.sigmoid(m.stem(x) + m.one(m.stem(x)).tanh())), **parts)


def joined() -> nn.Module:
    parts = {"a": C(3, 6, 1), "b": C(3, 6, 1), "end": nn.Linear(12 * 64, 2)}
    return Net(lambda m, x: m.end(torch.cat([m.a(x), m.b(x).sigmoid()], 1).flatten(1)), **parts)


def spread_over_positions() -> nn.Module:
    """Zero padding makes the second channel differ by position, which the linear layer sees as so many features."""
    parts = {"a": C(3, 6, 1), "b": C(6, 6, 3, padding=1, groups=6), "end": nn.Linear(6 * 64, 2)}
    return Net(lambda m, x: m.end(m.b(m.a(x).sigmoid()).flatten(1)), **parts)


FOLDS = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3)), VECTOR, ["0.weight"]),
    "conv1d of gpt2": (lambda: nn.Sequential(nn.Linear(8, 6), nn.GELU(), Conv1D(6, 3)), VECTOR, ["0.weight"]),
    "conv": (lambda: nn.Sequential(C(3, 6, 3, padding=1), R(), C(6, 4, 3, stride=2)), IMAGE, ["0.weight"]),
    "norm": (lambda: nn.Sequential(C(3, 6, 3), B(6), nn.Hardswish(), C(6, 4, 3)), IMAGE, ["1.weight"]),
    "grouped": (lambda: nn.Sequential(C(3, 8, 1), nn.ELU(), C(8, 4, 3, groups=4)), IMAGE, ["0.weight"]),
    "depthwise": (lambda: nn.Sequential(C(3, 6, 1), C(6, 6, 3, groups=6), R(), C(6, 2, 1)), IMAGE, ["0.weight"]),
    "transposed": (lambda: nn.Sequential(C(3, 6, 1), R(), nn.ConvTranspose2d(6, 2, 1)), IMAGE, ["0.weight"]),
    "reflected": (
        lambda: nn.Sequential(C(3, 6, 1), C(6, 4, 3, padding=1, padding_mode="reflect")),
        IMAGE,
        ["0.weight"],
    ),
    "pooled": (
        lambda: nn.Sequential(C(3, 6, 3), R(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 3)),
        IMAGE,
        ["0.weight"],
    ),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(3, 6, 3), R(), nn.Conv1d(6, 2, 3)), draw(2, 3, 9), ["0.weight"]),
    "three": (lambda: nn.Sequential(nn.Conv3d(2, 6, 1), R(), nn.Conv3d(6, 2, 3)), draw(2, 2, 4, 4, 4), ["0.weight"]),
    "norm takes it": (
        lambda: nn.Sequential(C(3, 6, 3), R(), C(6, 4, 3, bias=False), B(4), R(), C(4, 2, 1)),
        IMAGE,
        ["0.weight"],
    ),
    "residual": (residual, IMAGE, ["stem.weight", "one.weight"]),
    "joined": (joined, IMAGE, ["a.weight", "b.weight"]),
    "spread over positions": (spread_over_positions, IMAGE, ["a.weight"]),
}


@pytest.mark.parametrize("case", FOLDS)
def test_constants_move_into_what_reads_them(case: str) -> None:
    make, inputs, filters = FOLDS[case]
    torch.manual_seed(0)
    model, plan = dead(make(), inputs, *filters)
    assert gone(plan)
    assert_folds(model, plan, inputs)


BORDER = "what they add differs from position"
REFUSED = {
    "padding": (
        lambda: nn.Sequential(C(3, 6, 1), R(), C(6, 4, 3, padding=1)),
        ["0.weight"],
        f"'2' reads 3 removed units of '0': {BORDER}",
    ),
    "padding before": (
        lambda: nn.Sequential(C(3, 6, 1), C(6, 6, 3, padding=1, groups=6), R(), C(6, 2, 1)),
        ["0.weight"],
        f"'3' reads 3 removed units of '0': {BORDER}",
    ),
    "transposed": (
        lambda: nn.Sequential(C(3, 6, 1), nn.ConvTranspose2d(6, 2, 2, 2)),
        ["0.weight"],
        f"'1' reads 3 removed units of '0': {BORDER}",
    ),
    "no bias": (
        lambda: nn.Sequential(C(3, 6, 1), R(), C(6, 4, 3, bias=False)),
        ["0.weight"],
        "'2' reads 3 removed units of '0': it has no bias",
    ),
    "no running mean": (
        lambda: nn.Sequential(C(3, 6, 1), R(), C(6, 4, 3, bias=False), B(4, track_running_stats=False)),
        ["0.weight"],
        "'2' reads 3 removed units of '0': it has no bias",
    ),
    "running mean that is only counted": (
        lambda: Net(
            lambda m, x: m.end(F.batch_norm(m.c(m.a(x)), m.b.running_mean, m.b.running_var, training=True)).sum(),
            a=C(3, 6, 1),
            c=C(6, 4, 1, bias=False),
            b=B(4),
            end=R(),
        ),
        ["a.weight"],
        "'c' reads 3 removed units of 'a': it has no bias",
    ),
    "read before the norm too": (
        lambda: Net(lambda m, x: m.b(y := m.c(m.a(x))) + y, a=C(3, 6, 1), c=C(6, 4, 1, bias=False), b=B(4)),
        ["a.weight"],
        "'c' reads 3 removed units of 'a': it has no bias",
    ),
    "two constants for one bias": (
        lambda: Net(lambda m, x: m.b(m.a(x)) * m.b(m.c(x)), a=C(3, 6, 1), c=C(3, 6, 1), b=C(6, 4, 1)),
        ["a.weight", "c.weight"],
        "'b' reads 3 removed units of 'a.*': its bias is used by other operations",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_constant_without_a_place_is_refused(case: str) -> None:
    make, filters, words = REFUSED[case]
    torch.manual_seed(0)
    model, plan = dead(make(), IMAGE, *filters)
    with pytest.raises(PlanError, match=words):
        fold_constants(model, plan)


def test_one_bias_used_twice_takes_what_both_need() -> None:
    net = Net(lambda m, x: m.b(m.a(x)) * m.b(m.a(x * x)), a=C(3, 6, 1), b=C(6, 4, 1))
    model, plan = dead(net, IMAGE, "a.weight")
    assert_folds(model, plan, IMAGE)


def test_units_that_are_not_constant_are_refused() -> None:
    net = nn.Sequential(nn.Linear(8, 6), R(), nn.Linear(6, 3))
    groups = group(trace(net, VECTOR))
    plan = allocate(groups, score(net, groups, magnitude), Budget("units", at_most=0.5))
    with pytest.raises(PlanError, match="they are not constant"):
        fold_constants(net, plan)


def test_units_that_are_constant_on_the_examples_alone_are_refused() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    model, plan = dead(net, VECTOR[:1].repeat(3, 1), "0.weight")
    net[0].weight.data[1] = 1.0
    with pytest.raises(PlanError, match="they are not constant"):
        fold_constants(model, plan)


def test_units_that_differ_from_call_to_call_are_refused() -> None:
    net = Net(lambda m, x: m.b(m.a(x.sum(0, keepdim=True))), a=nn.Linear(8, 6), b=nn.Linear(6, 3))
    model, plan = dead(net, VECTOR, "a.weight")
    net.a.weight.data[1] = 1.0
    with pytest.raises(PlanError, match="they are not constant"):
        fold_constants(model, plan)


def test_a_constant_that_is_lost_is_lost_to_the_constants_made_of_it() -> None:
    """`b` can take neither constant; its first result is made of these alone, and `end` reads it as a constant."""
    parts = {"a": C(3, 6, 1), "c": C(3, 6, 1), "b": C(6, 4, 1), "end": C(4, 2, 1)}
    net = Net(lambda m, x: m.end(m.b(m.a(x)) * m.b(m.c(x))), **parts)
    model, plan = dead(net, IMAGE, "a.weight", "c.weight")
    (name,) = plan.provenance["constants"]
    net.b.weight.data[0, plan.keep[name]] = 0
    plan = Plan(plan.groups, {name: plan.keep[name], "b": torch.arange(4) > 0})
    with pytest.warns(UserWarning, match="its bias is used by other operations"):
        folded = fold_constants(model, plan, drop="*")
    zero(net, [1, 3, 5], "b.weight", dim=1)
    x = IMAGE.double() * 2
    torch.testing.assert_close(run(shrink(folded, plan), x), run(net, x), rtol=1e-9, atol=1e-9)


def padded_and_not() -> nn.Module:
    return nn.Sequential(C(3, 6, 1), R(), C(6, 8, 3, padding=1), R(), C(8, 4, 1))


def test_what_cannot_move_is_lost_on_request_and_the_rest_still_moves() -> None:
    model, plan = dead(padded_and_not(), IMAGE, "0.weight", "2.weight")
    with pytest.raises(PlanError, match="drop=\\['0'\\]"):
        fold_constants(model, plan, drop=["4*"])
    with pytest.warns(UserWarning, match="'2' reads 3 removed units of '0'"):
        folded = fold_constants(model, plan, drop=["0"])
    lost = nn.Sequential(*model)  # the same without the first constant, and with the second one
    zero(lost, [1, 3, 5], "2.weight", dim=1)
    x = IMAGE.double() * 2
    torch.testing.assert_close(run(shrink(folded, plan), x), run(lost, x), rtol=1e-9, atol=1e-9)


def test_a_folded_model_has_no_constants_left_to_lose() -> None:
    model, plan = dead(nn.Sequential(C(3, 6, 3), B(6), R(), C(6, 4, 3)), IMAGE, "1.weight")
    folded = fold_constants(model, plan)
    again = plan_from_zeros(folded, plan.graph)
    assert gone(again) == gone(plan)
    assert again.provenance["constants"] == {}


def test_folding_goes_on_from_a_smaller_model() -> None:
    """A second plan over the same trace, whose units are numbered as in the first model."""
    model, plan = dead(
        nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3)), VECTOR, "0.weight"
    )
    small = assert_folds(model, plan, VECTOR)
    zero(small, [0, 4], "2.weight")
    kept = torch.ones(6, dtype=torch.bool).index_fill(0, torch.tensor([0, 4]), False)
    following = Plan(plan.groups.at(plan), {"2": kept}, provenance={"constants": {"2": 2}})
    assert_folds(small, following, VECTOR)


def test_a_constant_that_goes_astray_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = dead(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3)), VECTOR, "0.weight")
    monkeypatch.setitem(fold_constants.__globals__, "_add", lambda *_: None)
    with pytest.raises(ProofError, match="on example 0"):
        fold_constants(model, plan)


def test_zeros_within_tensors_are_no_units() -> None:
    net = nn.Sequential(nn.Linear(8, 6))
    net[0].weight.data[1] = 0
    with pytest.raises(PlanError, match="makes zeros within tensors"):
        fold_constants(net, plan_from_zeros(net, group(net, pattern=Element())))


@laws(25)
@given(recipes("image", "features", most=3), seeds)
def test_a_random_network_with_dead_units_computes_the_same_without_them(recipe: Recipe, seed: int) -> None:
    model, inputs, groups = doubles(recipe)
    zero_at_random(model, groups, seed)
    try:
        plan = plan_from_zeros(model, trace(model, inputs))
        folded = fold_constants(model, plan)
    except PlanError:  # a whole group is dead, or a constant has no place
        assume(False)
        raise
    for x in (inputs, inputs.flip(0) * 3 + 1):
        torch.testing.assert_close(run(folded, x), run(model, x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(run(shrink(folded, plan, verify=False), x), run(model, x), rtol=1e-9, atol=1e-9)
