"""`mask`: zeros that stay exactly zero whatever trains the model, in a model that is otherwise untouched."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Recipe, Step, build
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.optimizer import _global_optimizer_post_hooks as global_hooks

import prunus
from prunus import Block, Budget, Channel, Element, NofM, Plan, criteria
from prunus.apply.mask import masked
from prunus.apply.zeros import kept_of
from prunus.errors import GroupError, PlanError
from prunus.graph.private import state_of
from prunus.patterns import Pattern

STEPS = 1000
Make = Callable[[Iterable[Any]], Optimizer]


@pytest.fixture(autouse=True)
def nothing_held_before_or_after() -> Iterator[None]:
    """A hold that is left over would reach into the next test."""
    assert not global_hooks
    yield
    gc.collect()
    assert not global_hooks


def tiny(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    parts = nn.Conv2d(2, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(16, 2)
    return nn.Sequential(*parts).to(dtype, memory_format=torch.channels_last)


def batch(step: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(step)).to(dtype)


def planned(model: nn.Module, pattern: Pattern | None = None, share: float = 0.5) -> Plan:
    groups = prunus.group(model, pattern=pattern or Element())
    budget = None if isinstance(pattern, NofM) else Budget("units", at_most=share)
    return prunus.allocate(groups, prunus.score(model, groups, criteria.magnitude), budget, scope="layer")


def train(model: nn.Module, optimizer: Optimizer, steps: int = 1) -> None:
    dtype = next(model.parameters()).dtype
    for step in range(steps):
        optimizer.zero_grad()
        model(batch(step, dtype)).float().square().mean().backward()
        optimizer.step()


def gone(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """What the plan removes of each tensor, told apart from how `mask` does it: by the units' own grid."""
    return {n: ~plan.groups[n].grid.spread(units).contiguous() for n, units in plan.keep.items()}


def assert_zero(model: nn.Module, removed: Mapping[str, Tensor]) -> None:
    """Each of them +0.0: a negative zero has its sign bit set."""
    for name, where in removed.items():
        values = model.state_dict()[name][where]
        assert not values.any(), name
        assert not values.signbit().any(), name


def alive(model: nn.Module) -> int:
    return sum(int(p.count_nonzero()) for p in model.parameters())


# zeros hold


OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "sgd foreach": lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd fused": lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1, fused=True),
    "adamw": lambda p: AdamW(p, lr=0.01, foreach=False),
    "adamw foreach": lambda p: AdamW(p, lr=0.01, foreach=True),
    "adamw fused": lambda p: AdamW(p, lr=0.01, fused=True),
    "amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True, maximize=True),
    "rmsprop": lambda p: RMSprop(p, lr=0.001, momentum=0.9, centered=True),
    "adagrad": lambda p: Adagrad(p, lr=0.01),
}
WAYS = ["plain", "clipped", "accumulated", "autocast"]
CASES = [
    *((name, "plain", torch.float32) for name in OPTIMIZERS),
    *((name, way, torch.float32) for name in ("sgd", "adamw fused") for way in WAYS[1:]),
    *((name, "plain", dtype) for name in ("sgd", "adamw foreach") for dtype in (torch.bfloat16, torch.float64)),
]


@pytest.mark.parametrize(("name", "way", "dtype"), CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_zeros_are_exactly_zero_after_many_steps(name: str, way: str, dtype: torch.dtype) -> None:
    model = tiny(dtype)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    plan, x = planned(model, share=0.3), batch(0, dtype)
    optimizer, before = OPTIMIZERS[name](model.parameters()), copy.deepcopy(model)
    prunus.mask(model, plan, optimizer)
    for step in range(STEPS):
        if way != "accumulated" or step % 2:
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if way == "autocast" else nullcontext():
            F.cross_entropy(model(x).float(), torch.arange(4) % 2, label_smoothing=0.1).backward()
        if way == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    removed = gone(model, plan)
    assert_zero(model, removed)
    assert {n: int(where.sum()) for n, where in removed.items()} == {"0.weight": 72 - 21, "3.weight": 32 - 9}
    for name, weight in model.named_parameters():
        kept = ~removed[name] if name in removed else ...
        moved = weight[kept] != before.get_parameter(name)[kept]
        assert weight.isfinite().all()
        assert moved.float().mean() > 0.6, name


@pytest.mark.parametrize("pattern", [Element(), Block(2, 1), Block(1, 2), NofM(1, 2)], ids=repr)
def test_every_pattern_within_tensors_is_held(pattern: Pattern) -> None:
    model = tiny()
    plan, optimizer = planned(model, pattern), SGD(model.parameters(), lr=0.1)
    with prunus.mask(model, plan, optimizer):
        train(model, optimizer, 5)
        assert_zero(model, gone(model, plan))
    assert sum(int(where.sum()) for where in gone(model, plan).values()) == (72 + 32) / 2


def test_no_layer_is_left_dense_silently() -> None:
    with pytest.raises(GroupError, match=r"'0.weight' is \(4, 2, 3, 3\); NofM.*multiple of 4.*skip=\['0.weight'\]"):
        prunus.group(tiny(), pattern=NofM(2, 4))
    assert prunus.group(tiny(), pattern=NofM(2, 4), skip="0").left_out == {"0.weight": 72}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_whatever_a_held_weight_becomes_it_is_zero_again(value: float) -> None:
    model = tiny()
    plan = planned(model)
    masks = prunus.mask(model, plan)
    with torch.no_grad():
        for name, where in gone(model, plan).items():
            model.get_parameter(name)[where] = value
    masks.zero()
    assert_zero(model, gone(model, plan))
    masks.detach()


# the model is as before


def test_nothing_of_the_model_but_its_zeros_is_changed() -> None:
    model, before = tiny(), tiny()
    plan, kinds = planned(model), [type(m) for m in model.modules()]
    with prunus.mask(model, plan, SGD(model.parameters(), lr=0.1)):
        assert list(model.state_dict()) == list(before.state_dict())
        assert [type(m) for m in model.modules()] == kinds
        assert not list(model.named_buffers())
        assert len(pickle.dumps(model)) == len(pickle.dumps(before))
        assert sum(t.nbytes for t in model.state_dict().values()) == sum(p.nbytes for p in before.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        torch.testing.assert_close(torch.export.export(model, (batch(),)).module()(batch()), model(batch()))
    removed = gone(model, plan)
    for name, tensor in model.state_dict().items():
        where = removed.get(name, torch.zeros_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor, before.state_dict()[name].masked_fill(where, 0.0))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])  # noqa: S301
def test_a_copy_has_the_zeros_and_nothing_holds_them(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = tiny()
    plan = planned(model)
    with prunus.mask(model, plan):
        other = copied(model)
        assert_zero(other, gone(other, plan))
        train(other, SGD(other.parameters(), lr=0.1))
        assert alive(other) > alive(model)
        assert_zero(model, gone(model, plan))


def test_the_state_of_the_optimizer_is_that_of_an_optimizer() -> None:
    model, free = tiny(), tiny()
    its, other = AdamW(model.parameters()), AdamW(free.parameters())
    with prunus.mask(model, planned(model), its):
        train(model, its, 2)
        train(free, other, 2)
        mine, theirs = its.state_dict(), other.state_dict()
        assert mine["param_groups"] == theirs["param_groups"]
        assert [s.keys() for s in mine["state"].values()] == [s.keys() for s in theirs["state"].values()]


def test_masked_is_a_copy() -> None:
    model = tiny()
    before, plan = copy.deepcopy(model), planned(model)
    assert_zero(masked(model, plan), gone(model, plan))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_it_costs_no_memory_beyond_the_plan() -> None:
    model = tiny().to(memory_format=torch.contiguous_format)
    for pattern in (Element(), NofM(1, 2)):
        plan = planned(model, pattern)
        kept = kept_of(state_of(model).tensors, plan)
        assert {n: k.data_ptr() for n, k in kept.items()} == {n: k.data_ptr() for n, k in plan.keep.items()}
    other = kept_of(state_of(tiny()).tensors, plan)["0.weight"]  # another memory format: a copy, one byte a weight
    assert other.stride() == tiny()[0].weight.stride()
    assert other.untyped_storage().nbytes() == other.numel()


# who holds, and how long


def test_two_optimizers_on_two_parts() -> None:
    model = tiny()
    plan = planned(model)
    parts = SGD(model[0].parameters(), lr=0.1), AdamW(model[3].parameters(), lr=0.1)
    with prunus.mask(model, plan, *parts):
        for each in (*parts, *parts):
            train(model, each)
            assert_zero(model, gone(model, plan))


def test_without_optimizers_every_one_is_followed_also_those_made_later() -> None:
    model, other = tiny(), tiny()
    plan, first = planned(model), SGD(model.parameters(), lr=0.1)
    masks = prunus.mask(model, plan)
    for optimizer in (first, AdamW(model.parameters(), lr=0.1)):
        train(model, optimizer)
        assert_zero(model, gone(model, plan))
    masked(other, plan)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight)
    nn.init.ones_(model[0].weight)
    train(other, SGD(other.parameters(), lr=0.1))
    assert int(other[0].weight.count_nonzero()) == 72
    assert model[0].weight.all()  # the steps of others are none of its business
    masks.zero()
    masks.detach()
    train(model, first)
    assert alive(model) == 110


def test_detaching_leaves_the_zeros_until_the_next_step() -> None:
    model = tiny()
    plan, optimizer = planned(model), SGD(model.parameters(), lr=0.1)
    masks = prunus.mask(model, plan, optimizer)
    train(model, optimizer)
    masks.detach()
    masks.detach()
    assert_zero(model, gone(model, plan))
    train(model, optimizer)
    assert alive(model) == 110
    masks.attach(optimizer)
    train(model, optimizer)
    assert_zero(model, gone(model, plan))


def test_the_hold_ends_with_an_error_in_the_block() -> None:
    model = tiny()
    with pytest.raises(ZeroDivisionError), prunus.mask(model, planned(model)):
        _ = 1 / 0
    assert not global_hooks


def test_a_model_that_is_gone_leaves_no_hook() -> None:
    model = tiny()
    prunus.mask(model, planned(model))
    gone_model = weakref.ref(model)
    assert len(global_hooks) == 1
    del model
    gc.collect()
    assert gone_model() is None
    assert not global_hooks


# gradients, updates, checkpoints


def test_the_norm_of_the_gradient_counts_kept_weights_only() -> None:
    model = tiny()
    plan = planned(model)
    with prunus.mask(model, plan) as masks:
        masks.clear_grads()  # there are none yet
        model(batch()).square().mean().backward()
        grads = {
            n: p.grad.masked_fill(gone(model, plan)[n], 0) if n in plan.keep else p.grad.clone()
            for n, p in model.named_parameters()
        }
        expected = torch.stack([g.norm() for g in grads.values()]).norm()
        assert expected < 0.99 * torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        masks.clear_grads()
        torch.testing.assert_close(nn.utils.clip_grad_norm_(model.parameters(), 1e-3), expected)


def test_an_update_holds_another_plan() -> None:
    model = tiny()
    first, optimizer = planned(model, share=0.2), SGD(model.parameters(), lr=0.1)
    second = Plan(first.groups, {n: k.roll(1) for n, k in first.keep.items()})
    with prunus.mask(model, first, optimizer) as masks:
        masks.update(second)
        assert masks.plan is second
        came_back = {n: where & ~gone(model, second)[n] for n, where in gone(model, first).items()}
        assert_zero(model, came_back)
        train(model, optimizer)
        assert_zero(model, gone(model, second))
        assert all(model.get_parameter(n)[where].any() for n, where in came_back.items())


@pytest.mark.parametrize("pattern", [Element(), NofM(1, 2), Block(2, 1)], ids=repr)
def test_what_is_held_is_saved_in_bits_and_held_again(pattern: Pattern) -> None:
    model, other = tiny(), tiny()
    plan = planned(model, pattern, share=0.4)
    with prunus.mask(model, plan) as masks, prunus.mask(other, planned(other, pattern, share=0.9)) as again:
        state = masks.state_dict()
        assert sum(t.nbytes for t in state.values()) == sum(-(-k.numel() // 8) for k in plan.keep.values())
        again.load_state_dict(state)
        assert again.state_dict().keys() == state.keys()
        assert all(torch.equal(bits, state[n]) for n, bits in again.state_dict().items())
        assert_zero(other, gone(model, plan))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"7.weight": s["0.weight"]}, "names '7.weight', which is no group of this plan.*0.weight"),
        (lambda s: s | {"0.weight": s["0.weight"][:2]}, "of '0.weight' holds 2 bytes .* for 72 units.*other shapes"),
    ],
    ids=["name", "size"],
)
def test_a_foreign_state_is_refused(change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    model = tiny()
    with prunus.mask(model, planned(model)) as masks, pytest.raises(PlanError, match=message):
        masks.load_state_dict(change(masks.state_dict()))


def test_a_model_of_other_shapes_is_refused() -> None:
    with pytest.raises(PlanError, match=r"'0.weight' of shape \(3, 2\).*\(4, 2, 3, 3\)"):
        prunus.mask(nn.Sequential(nn.Linear(2, 3)), planned(tiny()))


# channels as masks


NETS = {
    "channel": Recipe("image", (Step("residual", a=4, b=4), Step("activation"))),
    "head": Recipe("ids", (Step("attention", a=3, b=1),)),
}


@pytest.mark.parametrize("kind", NETS)
def test_a_masked_model_computes_what_the_smaller_one_computes(kind: str) -> None:
    model, x = build(NETS[kind])
    model, x = model.double(), x.double() if x.is_floating_point() else x
    groups = prunus.group(prunus.trace(model, x), pattern=Channel()).only(exact=True)
    assert kind in {g.kind for g in groups}
    plan = prunus.allocate(groups, prunus.score(model, groups, criteria.magnitude), Budget("units", at_most=0.5))
    expected = prunus.shrink(model, plan)
    optimizer = AdamW(model.parameters(), lr=0.01)
    with prunus.mask(model, plan, optimizer):
        torch.testing.assert_close(model.eval()(x), expected.eval()(x), rtol=1e-9, atol=1e-9)
        for step in range(20):
            optimizer.zero_grad()
            (model.train()(x) - step).square().mean().backward()
            optimizer.step()
    small = prunus.shrink(model, plan)
    prunus.verify(model, small, plan)
    torch.testing.assert_close(model.eval()(x), small.eval()(x), rtol=1e-9, atol=1e-9)
    assert (small(x) - expected(x)).abs().max() > 0.01


def test_all_that_a_dead_unit_owns_is_zero_in_training_and_really_goes() -> None:
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
    model, x = nn.Sequential(convs[0], nn.BatchNorm2d(8), nn.ReLU(), convs[1]), torch.randn(4, 3, 5, 5)
    groups, dead = prunus.group(prunus.trace(model, x)), torch.arange(8) < 3
    plan, optimizer = Plan(groups, {"0": ~dead}), SGD(model.parameters(), lr=0.1, momentum=0.9)
    with prunus.mask(model, plan, optimizer) as masks:
        for _ in range(5):
            optimizer.zero_grad()
            model.train()(x).square().mean().backward()
            optimizer.step()
            for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
                tensor = model.state_dict()[name]
                assert not tensor[dead].any(), name
                assert all(row.any() for row in tensor[~dead]), name
            assert not model[3].weight[:, dead].any()
        assert {name: int(bits) for name, bits in masks.state_dict().items()} == {"0": 0b11111000}
    small = prunus.shrink(model, plan)
    assert [tuple(small[i].weight.shape) for i in (0, 1, 3)] == [(5, 3, 3, 3), (5,), (4, 5, 3, 3)]
    torch.testing.assert_close(small.eval()(x), model.eval()(x))


def test_tensors_that_take_the_place_of_others_are_held_too() -> None:
    """A state dict that is assigned, or a cast, puts new tensors into the model."""
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    groups = prunus.group(model, pattern=prunus.Element())
    plan = prunus.allocate(groups, prunus.score(model, groups, prunus.criteria.magnitude), prunus.Budget("units", 0.5))
    with prunus.mask(model, plan):
        other = {name: torch.ones_like(t) for name, t in model.state_dict().items()}
        model.load_state_dict(other, assign=True)
        model.double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(5, 6, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        assert int((model[0].weight == 0).sum()) == 12
