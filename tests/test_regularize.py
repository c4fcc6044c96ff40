"""`prunus.regularize`: what is added is the gradient of the term, on any loop; what is pushed is cheap to cut."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nets import Recipe, build, recipes
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer

import prunus
from prunus import Block, Budget, Channel, Element, Groups, NofM, regularize, schedules
from prunus.errors import BudgetError, CriterionError, GroupError, PlanError
from prunus.regularize import GReg
from prunus.regularize.units import norms
from prunus.schedules import Schedule

Made = Any
"""A `Push` or a `GReg`, which are of one shape."""
EVERY: dict[str, Callable[..., Made]] = {
    "l1": lambda groups, **more: regularize.l1(groups, strength=0.3, **more),
    "bn_scale": lambda groups, **more: regularize.bn_scale(groups, strength=0.3, **more),
    "group_lasso": lambda groups, **more: regularize.group_lasso(groups, strength=0.3, **more),
    "plain group_lasso": lambda groups, **more: regularize.group_lasso(groups, strength=0.3, contrast=0.0, **more),
    "greg": lambda groups: GReg(groups, HALF, delta=0.1, every=2, ceiling=0.35),
    "greg of all": lambda groups: GReg(groups, HALF, delta=0.1, every=2, ceiling=0.35, pick_at=0.2),
}
PUSHES = ["l1", "bn_scale", "group_lasso", "plain group_lasso"]
HALF = Budget("units", at_most=0.5)
EVERY_SCHEDULE = [f for f in vars(schedules).values() if getattr(f, "__module__", "") == schedules.__name__]
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()),
        nn.Linear(8, 3),
    )


@cache
def traced() -> Groups:
    return prunus.group(prunus.trace(net(), torch.ones(4, 4)))


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, generator=draw), torch.randn(8, 3, generator=draw)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def train(model: nn.Module, *optimizers: Optimizer, steps: range) -> None:
    """Random numbers and data follow the number of the step alone."""
    for step in steps:
        torch.manual_seed(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss(model, batch(step)).backward()
        for optimizer in optimizers:
            optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# what is added


def assert_adds_its_gradient(made: Made, model: nn.Module) -> None:
    """A step without gradients leaves, in `.grad`, what autograd finds for the value; nothing where that is zero."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = SGD(model.parameters(), lr=0.0)
    for p in model.parameters():
        p.grad = None
    with made.attach(model, optimizer):
        expected = torch.autograd.grad(made.penalty(model), parameters, allow_unused=True, materialize_grads=True)
        optimizer.step()
    for p, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(torch.zeros_like(p) if p.grad is None else p.grad, gradient)


def some_units_zero(model: nn.Module, groups: Groups, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for group in groups:
        for member in group.members if group.size > 1 else ():
            index = groups.index(group, member)[torch.randint(0, group.size, (1,), generator=draw)].flatten()
            model.state_dict()[member.state].index_fill_(member.dim, index, 0)


@settings(max_examples=40, suppress_health_check=SLOW)
@given(recipes(), st.integers(0, 999), st.booleans())
def test_the_gradient_added_is_that_of_the_value(recipe: Recipe, seed: int, zeros: bool) -> None:
    model, inputs = build(recipe)
    model, inputs = model.double(), inputs.double() if inputs.is_floating_point() else inputs
    try:
        groups = prunus.group(prunus.trace(model, inputs))
    except GroupError:
        assume(False)
        raise
    if zeros:
        some_units_zero(model, groups, seed)
    for make in EVERY.values():
        with suppress(GroupError, BudgetError):  # no batch norm, or a budget out of reach
            made = make(groups)
            made.load_state_dict({"step": seed % 9, "kept": {}})
            assert_adds_its_gradient(made, model)


@pytest.mark.parametrize("pattern", [Element(), Block(2, 2), NofM(2, 4)], ids=repr)
def test_l1_within_tensors_is_about_the_weights_they_lie_in(pattern: Any) -> None:
    model = net()
    groups = prunus.group(model, pattern=pattern, skip="6")
    made = regularize.l1(groups, strength=0.5)
    assert_adds_its_gradient(made, model)
    expected = sum(0.5 * model[i].weight.abs().sum() for i in (0, 3))
    torch.testing.assert_close(made.penalty(model), torch.as_tensor(expected))
    assert model[6].weight.grad is None


def test_l1_within_tensors_leaves_alone_what_an_earlier_plan_removed() -> None:
    model = net()
    groups = prunus.group(model, pattern=Element())
    plan = prunus.allocate(groups, prunus.score(model, groups, prunus.criteria.magnitude), HALF)
    made = regularize.l1(groups.at(plan), strength=1.0)
    assert_adds_its_gradient(made, model)
    assert int(torch.count_nonzero(model[0].weight.grad)) == int(plan.keep["0.weight"].sum())


@pytest.mark.parametrize("name", EVERY)
def test_groups_that_a_plan_has_left_go_on_in_the_smaller_model(name: str) -> None:
    model, groups = net(), traced()
    plan = prunus.allocate(groups, prunus.score(model, groups, prunus.criteria.magnitude), Budget("units", 0.8))
    small = prunus.shrink(model, plan)
    made = EVERY[name](groups.at(plan))
    made.load_state_dict({"step": 5, "kept": {}})
    assert_adds_its_gradient(made, small)


@pytest.mark.parametrize("name", EVERY)
def test_riding_along_is_training_with_the_term_in_the_loss(name: str) -> None:
    found = []
    for added in (True, False):
        model, made = net().double(), EVERY[name](traced())
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        rides = made.attach(model, optimizer if added else SGD(model.parameters(), lr=0.0))
        for step in range(6):
            optimizer.zero_grad()
            inputs, targets = (t.double() for t in batch(step))
            whole = nn.functional.mse_loss(model(inputs), targets)
            (whole if added else whole + made.penalty(model)).backward()
            optimizer.step()
            if not added:  # steps that change nothing are counted all the same
                made._count(model) if name.startswith("greg") else made._count()
        rides.detach()
        found.append(weights(model))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_group_lasso_by_hand() -> None:
    """Units of squares 25, 16 and 1 at contrast 2: γ = 1, 2^(2 · 9/24) and 4; w / ‖w‖ times that."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
    model[0].weight.data = torch.tensor([[3.0], [0.0], [0.6]])
    model[2].weight.data = torch.tensor([[4.0, 4.0, 0.8]])
    groups = prunus.group(prunus.trace(model, torch.ones(2, 1)))
    made = regularize.group_lasso(groups, strength=0.5, contrast=2.0)
    middle = 2 ** (2 * 9 / 24)
    torch.testing.assert_close(made.penalty(model), torch.tensor(0.5 * (5 + 4 * middle + 4 * 1)))
    assert_adds_its_gradient(made, model)
    torch.testing.assert_close(model[0].weight.grad, torch.tensor([[0.3], [0.0], [0.5 * 4 * 0.6]]))
    torch.testing.assert_close(model[2].weight.grad, torch.tensor([[0.4, 0.5 * middle, 0.5 * 4 * 0.8]]))
    assert model[2].bias.grad is None  # owned by no unit


@pytest.mark.parametrize("name", EVERY)
def test_a_unit_of_zeros_is_pushed_nowhere(name: str) -> None:
    model = net()
    with torch.no_grad():
        for member in traced()["0"].members:
            model.state_dict()[member.state].select(member.dim, 2).zero_()
    made = EVERY[name](traced())
    made.load_state_dict({"step": 5, "kept": {}})
    assert_adds_its_gradient(made, model)
    assert not bool(model[0].weight.grad[2].any() if model[0].weight.grad is not None else False)


def test_units_that_are_all_alike_are_pushed_as_it_says() -> None:
    model = net()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    made = regularize.group_lasso(traced().only("3"), strength=1.0)
    assert float(made.penalty(model).detach()) == pytest.approx(8 * (8 + 1 + 1 + 1 + 3) ** 0.5)


def test_l1_and_the_scales_of_batch_norms_by_hand() -> None:
    model = net()
    model[1].weight.data = torch.tensor([0.5, -2.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    scales = regularize.bn_scale(traced().only("0"), strength=0.1)
    assert float(scales.penalty(model).detach()) == pytest.approx(0.75)
    assert_adds_its_gradient(scales, model)
    assert model[1].weight.grad is not None
    assert model[1].weight.grad[:4].tolist() == pytest.approx([0.1, -0.1, 0.0, 0.1])
    assert all(p.grad is None for name, p in model.named_parameters() if name != "1.weight")
    every = regularize.l1(traced(), strength=1.0)
    owned = sum(float(p.detach().abs().sum()) for name, p in model.named_parameters() if name != "6.bias")
    assert float(every.penalty(model).detach()) == pytest.approx(owned)  # an element of two groups counts once


def test_scales_are_found_in_functional_calls_too() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
            self.gain, self.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            mean, var = torch.zeros(4), torch.ones(4)
            y = nn.functional.batch_norm(self.inner(x), mean, var, self.gain, self.shift, training=True)
            return self.last(y.relu())

    model = Own()
    made = regularize.bn_scale(prunus.group(prunus.trace(model, torch.randn(4, 3))), strength=1.0)
    assert made.term.states == ("gain",)
    assert float(made.penalty(model).detach()) == 4.0


# when


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE, ids=lambda s: s.__name__)
def test_the_strength_follows_the_schedule_and_then_stays(schedule: Schedule) -> None:
    model, made = net(), regularize.l1(traced(), strength=2.0, steps=4, schedule=schedule)
    optimizer, whole = SGD(model.parameters(), lr=0.0), regularize.l1(traced(), strength=2.0).penalty(model).item()
    found = []
    with made.attach(model, optimizer):
        for _ in range(6):
            found.append(made.penalty(model).item() / whole)
            optimizer.step()
    assert found == pytest.approx([schedule(0.25), schedule(0.5), schedule(0.75), 1.0, 1.0, 1.0], abs=1e-6)


def test_steps_of_several_optimizers_are_counted_once_and_each_has_its_own_weights() -> None:
    model, made = net(), regularize.l1(traced(), strength=1.0)
    parts = SGD(model[0].parameters(), lr=0.0), SGD(model[3].parameters(), lr=0.0)
    with made.attach(model, *parts):
        for each in parts:
            each.step()
    assert made.step == 1
    assert torch.equal(model[0].weight.grad, model[0].weight.sign())
    assert torch.equal(model[3].weight.grad, model[3].weight.sign())
    assert model[6].weight.grad is None  # no optimizer trains it


def test_weights_that_are_not_trained_are_left_alone() -> None:
    model, made = net(), regularize.l1(traced(), strength=1.0)
    model[0].weight.requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    with made.attach(model, optimizer):
        optimizer.step()
    assert model[0].weight.grad is None


@pytest.mark.parametrize("named", [True, False])
def test_a_closure_that_clears_gradients_clears_nothing_of_the_term(named: bool) -> None:
    found = []
    for closed in (True, False):
        model, made = net(), regularize.group_lasso(traced(), strength=0.1)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)

        def closure(model: nn.Module = model, optimizer: Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            found = loss(model, batch(0))
            found.backward()
            return found

        with made.attach(model, optimizer):
            for _ in range(3):
                if closed and named:
                    assert optimizer.step(closure=closure) is not None
                elif closed:
                    assert optimizer.step(closure) is not None
                else:
                    closure()
                    optimizer.step()
        found.append(weights(model))
    assert same(*found)


def test_an_optimizer_that_asks_many_times_gets_the_term_each_time() -> None:
    """The least of ½ (w - 3)² + |w| is at w = 2."""
    model = nn.Linear(1, 1, bias=False)
    made = regularize.l1(prunus.group(model, pattern=Element()), strength=1.0)
    optimizer = LBFGS(model.parameters(), max_iter=30)

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = (model.weight - 3).square().sum() / 2
        found.backward()
        return found

    model.weight.data.fill_(1.0)
    with made.attach(model, optimizer):
        optimizer.step(closure)
    assert model.weight.item() == pytest.approx(2.0, abs=1e-4)


def test_a_gradient_scaler_does_not_shrink_the_term() -> None:
    found = []
    for scaled, fused in ((False, False), (True, False), (True, True)):
        model, made = net(), regularize.group_lasso(traced(), strength=0.1)
        optimizer = SGD(model.parameters(), lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        with made.attach(model, optimizer):
            for step in range(3):
                optimizer.zero_grad()
                scaler.scale(loss(model, batch(step))).backward()
                scaler.step(optimizer)
                scaler.update()
        found.append(weights(model))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_step_that_a_fused_kernel_leaves_out_counts_for_nothing() -> None:
    """A scaler sets `found_inf` and calls the step all the same."""
    model, made = net(), regularize.group_lasso(traced(), strength=0.1)
    optimizer: Any = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    with made.attach(model, optimizer):
        for found_inf, counted in ((1.0, 0), (0.0, 1)):
            optimizer.zero_grad()
            loss(model, batch(0)).backward()
            before, gradient = weights(model), model[0].weight.grad.clone()
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(found_inf)
            optimizer.step()
            assert made.step == counted
            assert same(weights(model), before) is not bool(counted)
            assert torch.equal(model[0].weight.grad, gradient) is not bool(counted)


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compile", "dp"])
def test_compiled_and_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    found = []
    for outer in (lambda m: m, wrap):
        model, made = net(), regularize.group_lasso(traced(), strength=0.1)
        wrapped = outer(model)
        optimizer = SGD(model.parameters(), lr=0.1)
        with made.attach(wrapped, optimizer):
            train(wrapped, optimizer, steps=range(3))
        assert made.penalty(wrapped).item() == made.penalty(model).item()
        found.append(weights(model))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", EVERY)
def test_detaching_ends_it_and_attaching_goes_on(name: str) -> None:
    model, made = net(), EVERY[name](traced())
    optimizer = SGD(model.parameters(), lr=0.0)
    for done in (2, 4):
        made.attach(model, optimizer)
        with made.attach(model, optimizer):  # the earlier one ends
            train(model, optimizer, steps=range(2))
        for p in model.parameters():
            p.grad = None
        optimizer.step()
        assert made.step == done
        assert all(p.grad is None for p in model.parameters())


# growing


def test_the_penalty_grows_to_its_ceiling_on_what_will_go() -> None:
    """Without a loss each step multiplies what goes by 1 - lr λ, once for a unit and once for the unit it meets."""
    model = net()
    made = GReg(traced(), HALF, delta=0.1, every=2, ceiling=0.25)
    assert made.steps == 6
    optimizer, before = SGD(model.parameters(), lr=1.0), model[1].weight.detach().clone()
    with made.attach(model, optimizer):
        gone, plan = ~made.plan.keep["0"], made.plan
        for step, level in enumerate([0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.25, 0.25]):
            optimizer.zero_grad()
            assert made.penalty(model).item() == pytest.approx(level / 2 * squares_of_gone(model, made), rel=1e-5)
            optimizer.step()
            before = torch.where(gone, before * (1 - level), before)
            torch.testing.assert_close(model[1].weight.detach(), before)
            assert made.step == step + 1
    assert made.plan is plan
    assert sum(int(kept.sum()) for kept in plan.keep.values()) == 8


def squares_of_gone(model: nn.Module, made: GReg) -> float:
    return sum(float(n[~made.plan.keep[name]].square().sum()) for name, n in norms(model, made.groups).items())


def test_all_grow_until_their_magnitudes_tell() -> None:
    model = net()
    made = GReg(traced(), HALF, delta=0.1, every=1, ceiling=0.5, pick_at=0.3)
    optimizer = SGD(model.parameters(), lr=0.1)
    with made.attach(model, optimizer):
        for step in range(5):
            every = 0.1 * step / 2 * sum(float(n.square().sum()) for n in norms(model, traced()).values())
            if step < 3:
                assert not made.plan.keep
                assert made.penalty(model).item() == pytest.approx(every)
            else:
                assert 0 < made.penalty(model).item() < every
            train(model, optimizer, steps=range(step, step + 1))
            if step == 2:
                scores = prunus.score(model, traced(), prunus.criteria.magnitude)
                picked = prunus.allocate(traced(), scores, HALF).keep
                assert all(torch.equal(made.plan.keep[name], kept) for name, kept in picked.items())
    assert made.plan.provenance["criterion"] == "prunus.criteria.magnitude"


# then the cut is nearly free


def pushed_then_cut(name: str | None) -> float:
    """How much of the loss comes from the cut of half the units, after 300 steps."""
    model, groups = net(), traced()
    teacher = net(seed=5)
    made = {
        "l1": lambda: regularize.l1(groups, strength=0.02, steps=100),
        "bn_scale": lambda: regularize.bn_scale(groups, strength=0.05, steps=100),
        "group_lasso": lambda: regularize.group_lasso(groups, strength=0.01, steps=100),
        "greg": lambda: GReg(groups, HALF, delta=0.02, every=2, ceiling=1.0),
        "greg of all": lambda: GReg(groups, HALF, delta=0.02, every=2, ceiling=1.0, pick_at=0.1),
        None: lambda: regularize.l1(groups, strength=0.0),
    }[name]()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 4, generator=draw)
    with torch.no_grad():
        targets = teacher(inputs)
    with made.attach(model, optimizer):
        for _ in range(300):
            optimizer.zero_grad()
            loss(model, (inputs, targets)).backward()
            optimizer.step()
    criterion = bn_scales if name == "bn_scale" else prunus.criteria.magnitude_l2
    plan = (
        made.plan if isinstance(made, GReg) else prunus.allocate(groups, prunus.score(model, groups, criterion), HALF)
    )
    model.eval()
    small = prunus.shrink(model, plan)
    with torch.no_grad():
        return float(loss(small, (inputs, targets)) - loss(model, (inputs, targets)))


def bn_scales(stats: prunus.Stats) -> dict[str, Tensor]:
    return {name: w.abs() for name, w in stats.weights.items() if name in ("1.weight", "4.weight")}


@pytest.mark.parametrize("name", ["l1", "bn_scale", "group_lasso", "greg", "greg of all"])
def test_what_was_pushed_costs_at_most_a_third_to_cut(name: str) -> None:
    assert pushed_then_cut(name) < pushed_then_cut(None) / 3


# a killed run


def started(name: str, seed: int) -> tuple[Any, ...]:
    model = net(seed)
    groups = prunus.group(prunus.trace(model, batch(0)[0]))
    more = {"steps": 8, "schedule": schedules.cubic} if name in PUSHES else {}
    return model, AdamW(model.parameters(), lr=0.01), EVERY[name](groups, **more)


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_a_killed_run_goes_on_to_the_same_bits(name: str, late: bool) -> None:
    for at in (0, 1, 4, 7, 11):
        model, optimizer, made = started(name, seed=0)
        made.attach(model, optimizer)
        train(model, optimizer, steps=range(at))
        file = io.BytesIO()
        torch.save([part.state_dict() for part in (model, optimizer, made)], file)
        train(model, optimizer, steps=range(at, 12))
        again = started(name, seed=1)
        if late:
            again[2].attach(*again[:2])
        file.seek(0)
        for part, state in zip(again, torch.load(file), strict=True):
            part.load_state_dict(state)
        if not late:
            again[2].attach(*again[:2])
        assert again[2].step == at
        train(*again[:2], steps=range(at, 12))
        assert same(weights(again[0]), weights(model))
        if isinstance(made, GReg):
            assert (again[2].plan.costs, again[2].plan.provenance) == (made.plan.costs, made.plan.provenance)


def test_units_of_an_earlier_plan_are_no_choice_of_its_own_when_a_run_goes_on() -> None:
    earlier = prunus.allocate(traced(), prunus.score(net(), traced(), prunus.criteria.magnitude), Budget("units", 0.75))

    def begun(seed: int) -> tuple[nn.Module, SGD, GReg]:
        model = prunus.shrink(net(seed), earlier)
        made = GReg(traced().at(earlier), HALF, delta=0.1, every=1, ceiling=0.5, pick_at=0.3)
        made.attach(model, optimizer := SGD(model.parameters(), lr=0.1))
        return model, optimizer, made

    whole = begun(0)
    train(*whole[:2], steps=range(1))
    again = begun(1)
    for part, of in zip(again, whole, strict=True):
        part.load_state_dict(of.state_dict())
    for model, optimizer, made in (again, whole):
        train(model, optimizer, steps=range(1, 6))
        assert sum(int(kept.sum()) for kept in made.plan.left.values()) == 8
        old = {name: value for name, value in made.state_dict().items() if name != "picked"}
        made.load_state_dict(old)  # as it was written before
        assert made.state_dict()["picked"]
    assert same(weights(again[0]), weights(whole[0]))
    assert all(torch.equal(again[2].plan.left[leaf], kept) for leaf, kept in whole[2].plan.left.items())


# several processes


RANK = """
import sys, torch, prunus
from torch import distributed, nn
rank, store, which = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
torch.manual_seed(rank)
data = [(torch.randn(8, 16), torch.randint(0, 4, (8,))) for _ in range(10)]
loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
together = nn.parallel.DistributedDataParallel(net)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
groups = prunus.group(prunus.trace(net, data[0][0]))
half = prunus.Budget("units", at_most=0.5)
made = {
    "group_lasso": lambda: prunus.regularize.group_lasso(groups, strength=0.01),
    "GReg": lambda: prunus.regularize.GReg(
        groups, half, criterion=prunus.criteria.taylor, data=data, loss=loss, delta=0.1, every=1, pick_at=0.3),
    "L0": lambda: prunus.regularize.L0(groups, strength=0.1, lr=1.0),
}[which]()
alike = []
with made.attach(together, optimizer):
    for batch in data:
        optimizer.zero_grad()
        loss(together, batch).backward()
        optimizer.step()
        mine = torch.cat([p.detach().flatten() for p in optimizer.param_groups[-1]["params"] + list(net.parameters())])
        every = [torch.empty_like(mine) for _ in range(2)]
        distributed.all_gather(every, mine)
        alike.append(torch.equal(*every))
print(all(alike), getattr(made, "plan", None) and made.plan.keep["0"].tolist())
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("which", ["group_lasso", "GReg", "L0"])
def test_ranks_with_data_of_their_own_stay_alike_to_the_bit(which: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(r), str(tmp_path / "store"), which], env=environment, stdout=subprocess.PIPE, text=True
        )
        for r in (0, 1)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert said[0] == said[1]
    assert said[0].startswith("True")


# errors


@pytest.mark.parametrize("wrong", [{"strength": -1.0}, {"strength": float("nan")}, {"steps": 0}])
@pytest.mark.parametrize("make", [regularize.l1, regularize.bn_scale, regularize.group_lasso, regularize.L0])
def test_strengths_and_steps_that_make_no_sense_are_refused(make: Callable[..., Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="expected a strength of 0 or more, and at least 1 step"):
        make(traced(), **wrong)


def test_a_negative_contrast_is_refused() -> None:
    with pytest.raises(PlanError, match=r"group_lasso\(contrast=-1\): expected 0 \(all alike\) or more"):
        regularize.group_lasso(traced(), contrast=-1)


@pytest.mark.parametrize("wrong", [{"delta": 0.0}, {"every": 0}, {"pick_at": 2.0}, {"pick_at": -0.1}])
def test_growth_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"GReg\(delta=.*expected delta above 0"):
        GReg(traced(), HALF, **wrong)


def test_a_budget_that_cannot_be_reached_is_refused_at_once() -> None:
    with pytest.raises(BudgetError, match="cannot be reached"):
        GReg(traced(), HALF, keep_at_least=0.9)


def test_a_criterion_that_lacks_its_data_is_refused_at_once() -> None:
    with pytest.raises(CriterionError, match="taylor: "):
        GReg(traced(), HALF, criterion=prunus.criteria.taylor, pick_at=0.01)


@pytest.mark.parametrize(
    "make",
    [regularize.bn_scale, regularize.group_lasso, lambda groups: GReg(groups, HALF)],
    ids=["bn", "lasso", "greg"],
)
def test_units_within_tensors_are_refused(make: Callable[[Groups], Any]) -> None:
    with pytest.raises(GroupError, match=r"pushes slices of whole axes, and Element\(\) lies within tensors"):
        make(prunus.group(net(), pattern=Element()))


@pytest.mark.parametrize("make", [*(EVERY[name] for name in PUSHES), regularize.L0], ids=[*PUSHES, "L0"])
def test_no_group_at_all_is_refused(make: Callable[[Groups], Any]) -> None:
    with pytest.raises(GroupError, match="was given no group to push; `only` and `skip` have left out every one"):
        make(traced().skip("*"))


def test_groups_without_a_batch_norm_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    groups = prunus.group(prunus.trace(model, torch.ones(2, 4)), pattern=Channel())
    with pytest.raises(GroupError, match="no unit of these groups goes through one that has scales"):
        regularize.bn_scale(groups)


@pytest.mark.parametrize("name", EVERY)
def test_no_optimizer_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match=r"was given no optimizer to step with; expected attach\(model, optimizer\)"):
        EVERY[name](traced()).attach(net())


@pytest.mark.parametrize("name", EVERY)
def test_a_model_of_other_shapes_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match="but the groups speak of shape"):
        EVERY[name](traced()).penalty(nn.Sequential(nn.Linear(4, 9)))


@pytest.mark.parametrize("name", ["group_lasso", "greg"])
def test_an_optimizer_carried_to_a_smaller_model_is_noticed(name: str) -> None:
    model, groups = net(), traced()
    optimizer = SGD(model.parameters(), lr=0.1)
    EVERY[name](groups).attach(model, optimizer)
    plan = prunus.allocate(groups, prunus.score(model, groups, prunus.criteria.magnitude), HALF)
    small = prunus.shrink(model, plan)
    prunus.carry(optimizer, model, small, plan)
    with pytest.raises(PlanError, match=r"trains another model than the one .* was attached to"):
        train(small, optimizer, steps=range(1))
