"""`Gradual`: density falls along the schedule to exactly the budget, in a user's own loop, and a killed run goes on."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import prunus
from prunus import Block, Budget, Channel, Element, Gradual, Groups, NofM, criteria, schedules
from prunus.errors import BudgetError, PlanError
from prunus.patterns import Pattern
from prunus.schedules import Schedule

STEPS, SHARE = 12, 0.3
EVERY_SCHEDULE = [f for f in vars(schedules).values() if getattr(f, "__module__", "") == schedules.__name__]
CASES: list[tuple[Pattern, Any]] = [
    *((Element(), scope) for scope in ("global", "layer", "row")),
    *((Block(2, 2), scope) for scope in ("global", "layer", "row")),
    (NofM(1, 4), "global"),
    *((Channel(), scope) for scope in ("global", "layer")),
]
Batch = tuple[Tensor, Tensor]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    ends = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4)
    return nn.Sequential(ends[0], nn.GELU(), nn.Dropout(0.2), ends[1], nn.GELU(), ends[2])


def batch(step: int) -> Batch:
    draw = torch.Generator().manual_seed(step)
    return torch.randn(4, 4, generator=draw), torch.randn(4, 4, generator=draw)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


@cache
def laid(pattern: Pattern) -> Groups:
    return prunus.group(prunus.trace(net(), batch(0)[0]), pattern=pattern)


def gradual_of(pattern: Pattern, **settings: Any) -> Gradual:
    budget = None if isinstance(pattern, NofM) else Budget("units", at_most=SHARE)
    return Gradual(laid(pattern), criteria.magnitude, budget, **{"steps": STEPS, **settings})


def train(model: nn.Module, *optimizers: Optimizer, steps: range = range(STEPS)) -> None:
    """Random numbers and data follow the number of the step alone."""
    for step in steps:
        torch.manual_seed(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss(model, batch(step)).backward()
        for optimizer in optimizers:
            optimizer.step()


def kept(gradual: Gradual) -> dict[str, Tensor]:
    left = gradual.plan.left
    return {g.name: left.get(g.leaf, torch.ones(g.size, dtype=torch.bool)) for g in gradual.groups}


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# along the schedule


def assert_follows(units: dict[str, Tensor], pattern: Pattern, scope: str, reached: float) -> None:
    """As many units as the schedule allows by now, to within one: in all, or in each weight or axis."""
    if isinstance(pattern, NofM):
        left = pattern.m - int((pattern.m - pattern.n) * reached + 1e-9)
        assert all(bool((mask.view(-1, pattern.m).sum(1) == left).all()) for mask in units.values())
        return
    allowed = 1 - (1 - SHARE) * reached
    parts = [torch.cat(list(units.values()))] if scope == "global" else list(units.values())
    for part in parts:
        assert int(part.sum()) == pytest.approx(int(allowed * part.numel() + 1e-9), abs=0.5)
        assert allowed * part.numel() - 1 < int(part.sum()) <= allowed * part.numel() + 1e-9


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE, ids=lambda s: s.__name__)
@pytest.mark.parametrize(("pattern", "scope"), CASES, ids=str)
def test_density_falls_along_the_schedule_to_the_budget(pattern: Pattern, scope: str, schedule: Schedule) -> None:
    model, gradual = net(), gradual_of(pattern, scope=scope, schedule=schedule)
    optimizer = AdamW(model.parameters(), lr=0.01)
    with gradual.attach(model, optimizer) as masks:
        before = kept(gradual)
        assert_follows(before, pattern, scope, schedule(0))
        for step in range(STEPS + 3):
            train(model, optimizer, steps=range(step, step + 1))
            now = kept(gradual)
            assert masks.plan is gradual.plan
            assert not any(bool((now[name] & ~units).any()) for name, units in before.items())
            assert_follows(now, pattern, scope, schedule(min(step + 1, STEPS) / STEPS))
            assert_zeros(model, gradual)
            before = now
    assert gradual.step == STEPS + 3


def assert_zeros(model: nn.Module, gradual: Gradual) -> None:
    """What is gone is zero, and in patterns within tensors nothing else is."""
    for name, units in kept(gradual).items():
        group = gradual.groups[name]
        if group.grid is None:
            assert not any(bool(model.get_parameter(m.state)[~units].any()) for m in group.producers)
        else:
            assert torch.equal(model.get_parameter(name) != 0, group.grid.spread(units))


@pytest.mark.parametrize(
    ("every", "expected"), [(1, list(range(1, 11))), (4, [4, 8, 10]), (5, [5, 10]), (99, [10]), (None, [*range(1, 11)])]
)
def test_the_plan_goes_on_every_so_many_steps_and_at_the_last(every: int | None, expected: list[int]) -> None:
    model, gradual = net(), gradual_of(Element(), steps=10, every=every, schedule=schedules.linear)
    optimizer, changes = SGD(model.parameters(), lr=0.1), []
    gradual.attach(model, optimizer)
    for step in range(14):
        before = gradual.plan
        train(model, optimizer, steps=range(step, step + 1))
        changes += [gradual.step] if gradual.plan is not before else []
    assert changes == expected


def test_by_default_the_plan_goes_on_a_hundred_times() -> None:
    assert [gradual_of(Element(), steps=n).every for n in (1, 99, 100, 250, 10_000)] == [1, 1, 1, 2, 100]


@pytest.mark.parametrize("pattern", [Element(), Channel()], ids=repr)
@pytest.mark.parametrize("budget", [Budget("params", 0.6), Budget("params", 100, relative=False), Budget("macs", 0.4)])
def test_other_budgets_are_met_too(pattern: Pattern, budget: Budget) -> None:
    model, gradual = net(), Gradual(laid(pattern), criteria.magnitude, budget, steps=5)
    optimizer = SGD(model.parameters(), lr=0.01)
    with gradual.attach(model, optimizer):
        train(model, optimizer, steps=range(5))
    before, after = gradual.plan.costs[budget.metric]
    most = budget.at_most * before if budget.relative else budget.at_most
    assert 0.6 * most < after <= most
    assert gradual.plan.budget == budget


def test_groups_that_an_earlier_plan_has_left_go_on() -> None:
    for pattern in (Channel(), Element()):
        model, groups = net(), laid(pattern)
        first = prunus.allocate(groups, prunus.score(model, groups, criteria.random), Budget("units", at_most=0.8))
        model = prunus.shrink(model, first) if pattern == Channel() else model
        gradual = Gradual(groups.at(first), criteria.magnitude, Budget("units", at_most=0.5), steps=4)
        optimizer = SGD(model.parameters(), lr=0.1)
        with gradual.attach(model, optimizer):
            train(model, optimizer, steps=range(4))
        assert not any(bool((units & ~first.keep[name]).any()) for name, units in kept(gradual).items())
        assert sum(int(units.sum()) for units in kept(gradual).values()) == sum(g.size for g in groups) // 2
        if pattern == Element():  # the model that channels were cut from is no longer as wide as its units say
            assert_zeros(model, gradual)


# in the user's loop


def test_two_lines_are_all_it_takes() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    gradual_of(Element()).attach(model, optimizer)
    train(model, optimizer)
    dense = sum(m.weight.count_nonzero() for m in model if isinstance(m, nn.Linear))
    assert dense == int(SHARE * (32 + 64 + 32))


def test_steps_of_several_optimizers_are_counted_once() -> None:
    model, gradual = net(), gradual_of(Element())
    parts = SGD(model[0].parameters(), lr=0.1), AdamW([*model[3].parameters(), *model[5].parameters()])
    gradual.attach(model, *parts)
    for step in range(5):
        train(model, *parts, steps=range(step, step + 1))
        assert_zeros(model, gradual)
    assert gradual.step == 5


def test_what_keeps_all_leaves_the_training_as_it_was() -> None:
    """Not a bit of the weights changes: neither gradients, nor modes, nor random numbers are touched."""
    found = []
    for attached in (False, True):
        model = net().train()
        optimizer, data = SGD(model.parameters(), lr=0.1, momentum=0.9), [batch(100), batch(101)]
        budget = Budget("units", at_most=1.0)
        gradual = Gradual(laid(Element()), criteria.taylor, budget, steps=STEPS, data=data, loss=loss)
        if attached:
            gradual.attach(model, optimizer)
        torch.manual_seed(0)
        for step in range(STEPS):
            loss(model, batch(step)).backward()  # gradients add up on purpose
            optimizer.step()
        found.append([*weights(model), torch.rand(3)])
    assert same(*found)


def test_detaching_ends_the_count_and_attaching_goes_on() -> None:
    model, gradual = net(), gradual_of(Element())
    optimizer = SGD(model.parameters(), lr=0.1)
    for done in (4, 8):
        with gradual.attach(model, optimizer):
            train(model, optimizer, steps=range(4))
        before = gradual.plan
        train(model, optimizer, steps=range(3))
        assert (gradual.step, gradual.plan) == (done, before)


def test_attaching_anew_ends_the_earlier_hold() -> None:
    model, gradual = net(), gradual_of(Element())
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        gradual.attach(model, optimizer)
    train(model, optimizer, steps=range(3))
    assert gradual.step == 3


def test_it_works_within_finetune() -> None:
    model, gradual, data = net(), gradual_of(Block(2, 1)), [batch(i) for i in range(4)]

    def optimizer(parameters: list[nn.Parameter], lr: float) -> Optimizer:
        made = SGD(parameters, lr=lr)
        gradual.attach(model, made)
        return made

    prunus.finetune(model, data, loss, epochs=STEPS // 4, lr=0.1, optimizer=optimizer)
    assert gradual.step == STEPS
    assert_follows(kept(gradual), Block(2, 1), "global", 1.0)
    assert_zeros(model, gradual)


def test_the_best_weights_of_finetune_are_zeroed_by_hand() -> None:
    model, gradual, scores = net(), gradual_of(Element()), iter([1.0, 0.0])
    masks: list[prunus.Mask] = []

    def optimizer(parameters: list[nn.Parameter], lr: float) -> Optimizer:
        made = SGD(parameters, lr=lr)
        masks.append(gradual.attach(model, made))
        return made

    data = [batch(i) for i in range(STEPS)]
    prunus.finetune(model, data, loss, epochs=1, optimizer=optimizer, evaluate=lambda _: next(scores))
    assert same(weights(model), weights(net()))  # the dense ones, from before the first step
    masks[0].zero()
    assert_zeros(model, gradual)


def test_channels_that_went_are_cut_out_and_proven() -> None:
    model, gradual = net(), gradual_of(Channel())
    optimizer = AdamW(model.parameters(), lr=0.01)
    with gradual.attach(model, optimizer):
        train(model, optimizer, steps=range(STEPS + 5))
    small = prunus.shrink(model, gradual.plan)
    assert small[0].out_features + small[3].out_features == int(SHARE * 16)
    torch.testing.assert_close(small.eval()(batch(0)[0]), model.eval()(batch(0)[0]))


# a killed run


def started(pattern: Pattern, schedule: Schedule, criterion: Any, seed: int) -> tuple[Any, ...]:
    """All that a script makes: model, optimizer, Gradual, laid or traced anew."""
    model = net(seed)
    groups = prunus.group(model if pattern != Channel() else prunus.trace(model, batch(0)[0]), pattern=pattern)
    budget = None if isinstance(pattern, NofM) else Budget("units", at_most=SHARE)
    data = [batch(100), batch(101)]
    settings = {"steps": STEPS, "every": 3, "schedule": schedule, "data": data, "loss": loss}
    return model, AdamW(model.parameters(), lr=0.01), Gradual(groups, criterion, budget, **settings)


@pytest.mark.parametrize("pattern", [Element(), Block(2, 2), NofM(1, 4), Channel()], ids=repr)
def test_a_killed_run_goes_on_to_the_same_bits(pattern: Pattern) -> None:
    @settings(max_examples=5 if pattern == Channel() else 12)
    @given(
        at=st.integers(0, STEPS + 2),
        late=st.booleans(),
        schedule=st.sampled_from(EVERY_SCHEDULE),
        criterion=st.sampled_from([criteria.magnitude, criteria.random, criteria.taylor]),
    )
    def law(at: int, late: bool, schedule: Schedule, criterion: Callable[..., Any]) -> None:
        model, optimizer, gradual = started(pattern, schedule, criterion, seed=0)
        gradual.attach(model, optimizer)
        file, end = io.BytesIO(), STEPS + 3
        train(model, optimizer, steps=range(at))
        torch.save([part.state_dict() for part in (model, optimizer, gradual)], file)
        train(model, optimizer, steps=range(at, end))
        again = started(pattern, schedule, criterion, seed=1)
        if late:
            again[2].attach(*again[:2])
        file.seek(0)
        for part, state in zip(again, torch.load(file), strict=True):
            part.load_state_dict(state)
        if not late:
            again[2].attach(*again[:2])
        assert again[2].step == at
        train(*again[:2], steps=range(at, end))
        assert same(weights(again[0]), weights(model))
        assert_zeros(again[0], again[2])
        assert (again[2].plan.costs, again[2].plan.provenance) == (gradual.plan.costs, gradual.plan.provenance)
        assert again[2].plan.budget == gradual.plan.budget

    law()


def test_what_is_loaded_can_be_saved_before_it_is_attached() -> None:
    model, gradual, again = net(), gradual_of(Element()), gradual_of(Element())
    optimizer = SGD(model.parameters(), lr=0.1)
    assert gradual.state_dict() == {"step": 0, "kept": {}}
    with gradual.attach(model, optimizer):
        train(model, optimizer, steps=range(5))
    again.load_state_dict(gradual.state_dict())
    assert again.state_dict()["step"] == 5
    assert again.state_dict()["kept"].keys() == gradual.state_dict()["kept"].keys()
    assert same(*(list(each.state_dict()["kept"].values()) for each in (again, gradual)))


# errors


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": -3}, {"every": 0}])
def test_no_steps_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(PlanError, match=r"Gradual\(steps=.*expected at least 1; they count optimizer steps"):
        gradual_of(Element(), **wrong)


def test_no_optimizer_is_refused() -> None:
    with pytest.raises(PlanError, match=r"no optimizer to count the steps of; expected attach\(model, optimizer\)"):
        gradual_of(Element()).attach(net())


@pytest.mark.parametrize("pattern", [Element(), Channel()], ids=repr)
def test_a_budget_that_cannot_be_reached_is_refused_at_once(pattern: Pattern) -> None:
    with pytest.raises(BudgetError, match="cannot be reached"):
        gradual_of(pattern, keep_at_least=0.6)


@pytest.mark.parametrize(
    ("pattern", "budget", "message"),
    [(NofM(1, 4), Budget("units", 0.5), "fixes its own density"), (Element(), None, "needs a budget")],
)
def test_a_budget_where_it_belongs(pattern: Pattern, budget: Budget | None, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Gradual(laid(pattern), criteria.magnitude, budget, steps=3)


def test_a_state_of_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match=r"names 'other.weight', which is no group of this plan"):
        gradual_of(Element()).load_state_dict({"step": 3, "kept": {"other.weight": torch.zeros(1, dtype=torch.uint8)}})


def test_a_schedule_that_stops_short_still_ends_at_the_budget() -> None:
    model = nn.Linear(10, 10)
    optimizer = SGD(model.parameters(), lr=0.1)
    groups = prunus.group(model, pattern=Element())
    gradual = Gradual(groups, criteria.magnitude, Budget("units", 0.25), schedule=lambda p: p / 2, steps=4)
    with gradual.attach(model, optimizer) as masks:
        for _ in range(4):
            model(torch.ones(1, 10)).sum().backward()
            optimizer.step()
    assert int(model.weight.count_nonzero()) == 25
    made = masks.plan.provenance
    assert (made["criterion"], made["steps"], made["scope"]) == ("prunus.criteria.magnitude", 4, "global")


def test_an_optimizer_carried_to_a_smaller_model_is_noticed() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = SGD(model.parameters(), lr=0.1)
    groups = prunus.group(prunus.trace(model, torch.randn(2, 6)))
    gradual = Gradual(groups, criteria.magnitude, Budget("units", 0.5), steps=4, every=1)
    gradual.attach(model, optimizer)
    model(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    small = prunus.shrink(model, gradual.plan)
    prunus.carry(optimizer, model, small, gradual.plan)
    small(torch.randn(2, 6)).sum().backward()
    with pytest.raises(PlanError, match="trains another model than the one Gradual was attached to"):
        optimizer.step()
