"""`Regrow`: as many weights in each layer all along, elsewhere in the end; a killed run goes on to the same bits."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import prunus
from prunus import Block, Budget, Channel, Element, NofM, Regrow, criteria, densities
from prunus.errors import BudgetError, GroupError, PlanError
from prunus.patterns import Pattern

STEPS, EVERY, SHARE = 12, 3, 0.3
PATTERNS = [Element(), Block(2, 2)]
GROW = ["gradient", "random"]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))


def regrow_of(model: nn.Module, pattern: Pattern | None = None, **options: Any) -> Regrow:
    groups = prunus.group(model, pattern=pattern or Element())
    start = options.pop("start", Budget("units", at_most=SHARE))
    return Regrow(groups, start, **{"steps": STEPS, "every": EVERY, "until": 1.0, **options})


def backward(model: nn.Module, step: int) -> None:
    """Random numbers and data follow the number of the step alone."""
    torch.manual_seed(step)
    x = torch.randn(8, 4)
    (model(x) - x.flip(1)).square().mean().backward()


def train(model: nn.Module, *optimizers: Optimizer, steps: range = range(STEPS)) -> None:
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(model, step)
        for optimizer in optimizers:
            optimizer.step()


def moved(before: Any, after: Any) -> dict[str, int]:
    """How many units of each weight have grown."""
    return {name: int((after.keep[name] & ~kept).sum()) for name, kept in before.keep.items()}


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("grow", GROW)
def test_each_weight_always_has_as_many_units(pattern: Pattern, grow: Any) -> None:
    model = net()
    regrow, optimizer = regrow_of(model, pattern, grow=grow, drop=0.5), AdamW(model.parameters(), lr=0.05)
    first, changes = regrow.plan, []
    with regrow.attach(model, optimizer) as masks:
        for step in range(STEPS + 3):
            before = regrow.plan
            train(model, optimizer, steps=range(step, step + 1))
            changes += [step] if any(moved(before, regrow.plan).values()) else []
            assert masks.plan is regrow.plan
            for name, kept in regrow.plan.keep.items():
                assert int(kept.sum()) == int(first.keep[name].sum())
                grid = regrow.groups[name].grid
                assert grid is not None
                assert not bool(model.get_parameter(name)[~grid.spread(kept)].any())
    assert set(changes) <= {3, 6, 9}
    assert 3 in changes
    assert pattern != Element() or {3, 6} <= set(changes)
    assert regrow.step == STEPS + 3


def test_it_starts_at_the_budget_and_the_densities() -> None:
    model = net()
    shares = densities.erk(regrow_of(model).groups, {}, SHARE)
    for name, kept in regrow_of(model).plan.keep.items():
        assert int(kept.sum()) == int(shares[name] * kept.numel() + 1e-9)
    alike = regrow_of(model, densities=densities.uniform).plan
    assert [int(k.sum()) for k in alike.keep.values()] == [9, 19, 9]
    assert not same([*regrow_of(model, seed=1).plan.keep.values()], [*regrow_of(model, seed=2).plan.keep.values()])


def test_what_goes_and_what_grows_by_hand() -> None:
    """Half of four weights go at the one update, the smallest; of all that are out the largest gradients grow."""
    model = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 3.0, 0.2, 0.1, 9.0, 9.0, 9.0, 9.0]]))
    groups = prunus.group(model, pattern=Element())
    start = prunus.Plan(groups, {"weight": torch.arange(8) < 4})
    regrow = Regrow(groups, start, steps=2, every=1, until=2.0 / 2, drop=1.0)  # cos(pi/2) = 0 at step 1: a half
    optimizer = SGD(model.parameters(), lr=0.0)
    with regrow.attach(model, optimizer):
        for gradient in ([0.0] * 8, [0.0, 0.0, 5.0, 0.0, 1.0, 0.0, -7.0, 2.0]):
            model.weight.grad = torch.tensor([gradient])
            optimizer.step()
    assert regrow.plan.keep["weight"].tolist() == [True, True, True, False, False, False, True, False]
    assert model.weight.detach().tolist() == [[4.0, 3.0, pytest.approx(0.2), 0.0, 0.0, 0.0, 0.0, 0.0]]


@settings(max_examples=20)
@given(st.integers(1, 40), st.floats(0, 1), st.floats(0.1, 1), st.integers(1, 5))
def test_so_many_go_as_the_cosine_says(steps: int, drop: float, until: float, every: int) -> None:
    model = nn.Linear(20, 20, bias=False)
    regrow = regrow_of(model, steps=steps, drop=drop, until=until, every=every)
    optimizer = SGD(model.parameters(), lr=0.0)
    with regrow.attach(model, optimizer):
        for step in range(steps):
            before = regrow.plan
            kept = before.keep["weight"].view(20, 20)
            with torch.no_grad():  # zeros want to grow, and what is there does not
                model.weight.copy_(torch.rand(20, 20) * kept)
                model.weight.grad = (~kept).float()
            optimizer.step()
            due = step and step % every == 0 and step < until * steps
            share = drop / 2 * (1 + math.cos(math.pi * step / (until * steps))) if due else 0.0
            assert moved(before, regrow.plan)["weight"] == int(share * 120)


@pytest.mark.parametrize("grow", GROW)
def test_what_grows_starts_at_zero_with_moments_at_zero(grow: Any) -> None:
    model = net()
    regrow = regrow_of(model, grow=grow, drop=1.0)
    optimizer = AdamW(model.parameters(), lr=0.05, amsgrad=True)
    with regrow.attach(model, optimizer):
        train(model, optimizer, steps=range(EVERY))
        before, seen = regrow.plan, []

        def look(*_: object) -> None:  # runs after the hook of Regrow, before the step
            for name, kept in before.keep.items():
                weight, grid = model.get_parameter(name), regrow.groups[name].grid
                assert grid is not None
                grown = grid.spread(regrow.plan.keep[name] & ~kept)
                held = [v for v in optimizer.state[weight].values() if v.shape == weight.shape]
                assert len(held) == 3
                assert all(bool(v[~grown].any()) and not bool(v[grown].any()) for v in held)
                seen.append(int(grown.sum()) + int(weight[grown].count_nonzero()) * 1000)

        optimizer.register_step_pre_hook(look)
        train(model, optimizer, steps=range(EVERY, EVERY + 1))
    assert 0 < sum(seen) < 1000
    grown = regrow.plan.keep["3.weight"] & ~before.keep["3.weight"]
    assert grow == "random" or bool(model[3].weight.flatten()[grown].all())  # and they have trained at once


def test_gradients_of_zeros_are_those_of_the_dense_weight() -> None:
    """Those grow along which the loss falls most, though nothing goes through them yet."""
    model = nn.Linear(8, 1, bias=False)
    groups = prunus.group(model, pattern=Element())
    start = prunus.Plan(groups, {"weight": torch.arange(8) < 4})
    regrow = Regrow(groups, start, steps=1000, every=1, drop=1.0)
    optimizer = SGD(model.parameters(), lr=0.01)
    with regrow.attach(model, optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            aim = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 30.0, 1.0, 20.0])
            (model(torch.eye(8))[:, 0] - aim).square().sum().backward()
            optimizer.step()
    kept = regrow.plan.keep["weight"]
    assert bool(kept[5])
    assert bool(kept[7])
    assert int(kept.sum()) == 4


def test_random_growth_follows_seed_and_step_alone() -> None:
    found = []
    for seed in (0, 0, 1):
        model = net()
        start = prunus.allocate(
            (groups := prunus.group(model, pattern=Element())),
            prunus.score(model, groups, criteria.magnitude),
            Budget("units", SHARE),
        )
        regrow = Regrow(groups, start, steps=STEPS, every=EVERY, grow="random", drop=0.9, seed=seed)
        optimizer = SGD(model.parameters(), lr=0.1)
        with regrow.attach(model, optimizer):
            torch.rand(seed)
            train(model, optimizer)
        found.append([*regrow.plan.keep.values()])
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_a_weight_without_a_gradient_stays_as_it_is() -> None:
    model = net()
    model[3].weight.requires_grad_(False)
    regrow, optimizer = regrow_of(model, drop=1.0), SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    first = regrow.plan
    with regrow.attach(model, optimizer):
        train(model, optimizer)
    assert torch.equal(first.keep["3.weight"], regrow.plan.keep["3.weight"])
    assert moved(first, regrow.plan)["0.weight"] > 0


def test_a_given_plan_keeps_the_zeros_of_other_weights() -> None:
    model = net()
    groups = prunus.group(model, pattern=Element())
    plan = prunus.allocate(groups, prunus.score(model, groups, criteria.magnitude), Budget("units", SHARE))
    regrow = Regrow(groups.skip("5"), plan, steps=STEPS, every=EVERY, drop=1.0)
    optimizer = SGD(model.parameters(), lr=0.1)
    with regrow.attach(model, optimizer):
        train(model, optimizer)
    assert torch.equal(regrow.plan.keep["5.weight"], plan.keep["5.weight"])
    assert torch.equal(model[5].weight.flatten() != 0, plan.keep["5.weight"])
    assert moved(plan, regrow.plan)["3.weight"] > 0


def test_several_optimizers_are_counted_once_and_all_are_cleared() -> None:
    model = net()
    parts = SGD(model[0].parameters(), lr=0.1), AdamW([*model[3].parameters(), *model[5].parameters()])
    regrow = regrow_of(model)
    with regrow.attach(model, *parts):
        train(model, *parts)
    assert regrow.step == STEPS


def test_nothing_drops_with_a_share_of_zero_and_the_training_is_that_of_a_mask() -> None:
    found = []
    for masked in (False, True):
        model = net()
        regrow, optimizer = regrow_of(model, drop=0.0), AdamW(model.parameters(), lr=0.05)
        with prunus.mask(model, regrow.plan, optimizer) if masked else regrow.attach(model, optimizer):
            train(model, optimizer)
        found.append(weights(model))
    assert same(*found)


def test_attaching_anew_ends_the_earlier_hold() -> None:
    model = net()
    regrow, optimizer = regrow_of(model), SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        regrow.attach(model, optimizer)
    train(model, optimizer, steps=range(3))
    assert regrow.step == 3


@pytest.mark.parametrize("grow", GROW)
def test_a_killed_run_goes_on_to_the_same_bits(grow: Any) -> None:
    @settings(max_examples=12)
    @given(at=st.integers(0, STEPS), late=st.booleans(), pattern=st.sampled_from(PATTERNS))
    def law(at: int, late: bool, pattern: Pattern) -> None:
        def started(seed: int) -> tuple[nn.Module, Optimizer, Regrow]:
            model = net(seed)
            return model, AdamW(model.parameters(), lr=0.05), regrow_of(model, pattern, grow=grow, drop=0.6)

        model, optimizer, regrow = started(0)
        regrow.attach(model, optimizer)
        file = io.BytesIO()
        train(model, optimizer, steps=range(at))
        torch.save([part.state_dict() for part in (model, optimizer, regrow)], file)
        train(model, optimizer, steps=range(at, STEPS))
        again = started(1)
        if late:
            again[2].attach(*again[:2])
        file.seek(0)
        for part, state in zip(again, torch.load(file), strict=True):
            part.load_state_dict(state)
        if not late:
            again[2].attach(*again[:2])
        train(*again[:2], steps=range(at, STEPS))
        assert same(weights(again[0]), weights(model))
        assert same([*again[2].plan.left.values()], [*regrow.plan.left.values()])

    law()


# Errors


@pytest.mark.parametrize("pattern", [Channel(), NofM(2, 4)], ids=repr)
def test_other_patterns_are_refused(pattern: Pattern) -> None:
    model = net()
    groups = prunus.group(prunus.trace(model, torch.randn(2, 4)), pattern=pattern)
    with pytest.raises(GroupError, match=r"Regrow moves single weights or blocks; .* Lay Element\(\) or Block"):
        Regrow(groups, Budget("units", 0.5), steps=3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0, every=3.*expected at least 1; they count optimizer steps"),
        ({"every": 0}, "steps=12, every=0.*expected at least 1; they count optimizer steps"),
        ({"until": 1.5}, "until=1.5, drop=0.3.*expected shares, 0 to 1"),
        ({"drop": -0.1}, "until=1.0, drop=-0.1.*expected shares, 0 to 1"),
        ({"grow": "gradients"}, "Unknown grow='gradients'; expected one of gradient, random"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        regrow_of(net(), **wrong)


def test_groups_of_a_plan_are_refused() -> None:
    model = net()
    groups = prunus.group(model, pattern=Element())
    plan = prunus.allocate(groups, prunus.score(model, groups, criteria.magnitude), Budget("units", 0.5))
    with pytest.raises(GroupError, match="Give it the groups as they were laid, and that plan as `start`"):
        Regrow(groups.at(plan), Budget("units", 0.2), steps=3)


def test_a_plan_of_other_groups_is_refused() -> None:
    plan = regrow_of(net()).plan
    with pytest.raises(PlanError, match="was made on other groups than these"):
        regrow_of(net(), start=plan)


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="trains another model than the one Regrow was attached to"):
        regrow_of(model := net()).attach(model, SGD(net(1).parameters(), lr=0.1))


def test_no_optimizer_is_refused() -> None:
    with pytest.raises(PlanError, match=r"Regrow.attach\(model\) was given no optimizer to count the steps of"):
        regrow_of(net()).attach(net())


def test_a_budget_that_cannot_be_reached_is_refused_at_once() -> None:
    with pytest.raises(BudgetError, match="cannot be reached"):
        regrow_of(net(), start=Budget("units", at_most=0.001))


RANK = """
import sys, torch, prunus
from torch import distributed, nn
rank, store, grow = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
torch.manual_seed(rank)
data = [(torch.randn(8, 16), torch.randint(0, 4, (8,))) for _ in range(10)]
together = nn.parallel.DistributedDataParallel(net)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
groups = prunus.group(net, pattern=prunus.Element())
regrow = prunus.Regrow(groups, prunus.Budget("units", at_most=0.3), steps=10, every=2, grow=grow, drop=0.5, seed=rank)
alike = []
with regrow.attach(together, optimizer):
    for inputs, labels in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(together(inputs), labels).backward()
        optimizer.step()
        mine = torch.cat([p.detach().flatten() for p in net.parameters()])
        every = [torch.empty_like(mine) for _ in range(2)]
        distributed.all_gather(every, mine)
        alike.append(torch.equal(*every))
print(all(alike), int((mine == 0).sum()))
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("grow", GROW)
def test_ranks_have_the_same_weights_at_every_step(tmp_path: Path, grow: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(r), str(tmp_path / "s"), grow], env=environment, stdout=subprocess.PIPE, text=True
        )
        for r in (0, 1)
    ]
    said = [rank.communicate(timeout=120)[0].split() for rank in ranks]
    assert said[0] == said[1]
    assert said[0][0] == "True"
    assert int(said[0][1]) >= 0.69 * (16 * 32 + 32 * 4)
