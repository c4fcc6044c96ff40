"""`regularize.L0`: a closed gate is a removed unit, the expected count is what it says, and folding changes nothing."""

from __future__ import annotations

import copy
import io
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nets import Attention, PackedAttention, Recipe, Stubborn, build, recipes
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from units import random_plan, zeroed

import prunus
from prunus import Budget, Element, Groups
from prunus.errors import GroupError, PlanError
from prunus.regularize import L0
from prunus.regularize.gates import check_gateable
from prunus.regularize.hard_concrete import drawn, open_chance, open_slope, settled
from prunus.regularize.units import norms

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def groups_of(model: nn.Module) -> Groups:
    return prunus.group(prunus.trace(model, torch.ones(4, 4)))


def gates_of(l0: L0) -> dict[str, Tensor]:
    return {name: gates.log_alpha for name, gates in l0._gates.items()}


def closed(l0: L0, keep: dict[str, Tensor]) -> None:
    """Gates far open for what stays, far closed for what goes."""
    with torch.no_grad():
        for name, log_alpha in gates_of(l0).items():
            log_alpha.copy_(torch.where(keep[name], 20.0, -20.0))


def gateable(groups: Groups) -> Groups:
    """Those of the groups that are exact and can be gated."""
    found = groups.only(exact=True)
    return found.skip(*(group.name for group in found if not can_be_gated(groups.only(group.name))))


def can_be_gated(groups: Groups) -> bool:
    try:
        check_gateable(groups)
    except GroupError:
        return False
    return True


# the distribution


def test_gates_for_noise_by_hand() -> None:
    """At log α = 0: u = ½ gives the middle, u = 0.1 sigmoid(-2.1972 · 1.5) · 1.2 - 0.1 < 0, so 0, and u = 0.9 one."""
    assert drawn(torch.zeros(3), torch.tensor([0.5, 0.1, 0.9])).tolist() == pytest.approx([0.5, 0.0, 1.0])
    assert drawn(torch.zeros(1), torch.tensor([0.4])).item() == pytest.approx(0.323, abs=1e-3)


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_gates_are_open_as_often_as_the_chance_says(log_alpha: float) -> None:
    draw = torch.Generator().manual_seed(0)
    gates = drawn(torch.tensor(log_alpha), torch.rand(100_000, generator=draw).clamp(1e-6, 1 - 1e-6))
    assert float((gates > 0).double().mean()) == pytest.approx(open_chance(torch.tensor(log_alpha)).item(), abs=0.006)


def test_the_slope_is_that_of_the_chance() -> None:
    log_alpha = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(open_chance(log_alpha).sum(), log_alpha)
    torch.testing.assert_close(open_slope(log_alpha.detach()), expected)


def test_the_term_is_the_share_of_parameters_expected_to_stay() -> None:
    """Unit of `0`: 4 + 1 + 2 + 6 elements, of `3`: 8 + 1 + 3; half of all is open where α is such that P = ½."""
    model = net()
    l0 = L0(groups_of(model), strength=3.0)
    l0.attach(model, SGD(model.parameters(), lr=0.1))
    total = 8 * 13 + 6 * 12
    with torch.no_grad():
        for log_alpha in gates_of(l0).values():
            log_alpha.fill_(60.0)
        assert l0.penalty(model).item() == pytest.approx(3.0)
        gates_of(l0)["0"].fill_(-60.0)
        assert l0.penalty(model).item() == pytest.approx(3.0 * 6 * 12 / total)


def test_the_gradient_added_is_that_of_the_value() -> None:
    model = net()
    l0 = L0(groups_of(model), strength=0.7)
    optimizer = SGD(model.parameters(), lr=0.0)
    l0.attach(model, optimizer)
    gates = list(gates_of(l0).values())
    with torch.no_grad():
        for log_alpha in gates:
            log_alpha.normal_(generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(l0.penalty(model), gates)
    optimizer.step()
    for log_alpha, gradient in zip(gates, expected, strict=True):
        assert log_alpha.grad is not None
        torch.testing.assert_close(log_alpha.grad, gradient)
    assert model[0].weight.grad is None


# in the forward pass


@settings(max_examples=25, suppress_health_check=SLOW)
@given(recipes(), st.integers(0, 999))
def test_a_closed_gate_is_a_removed_unit(recipe: Recipe, seed: int) -> None:
    model, inputs = build(recipe)
    model, inputs = model.double(), inputs.double() if inputs.is_floating_point() else inputs
    try:
        groups = gateable(prunus.group(prunus.trace(model, inputs)))
        plan = random_plan(groups, seed)
        l0 = L0(groups)
        ride = l0.attach(model, SGD(model.parameters(), lr=0.1))
    except GroupError:  # nothing to gate, or a recurrent layer reads it
        assume(False)
        raise
    expected = zeroed(build(recipe)[0].double(), plan).eval()(inputs)
    closed(l0, dict(plan.keep))
    torch.testing.assert_close(model.eval()(inputs), expected)
    ride.detach()
    torch.testing.assert_close(model(inputs), expected)


def test_gates_are_drawn_once_a_pass_and_shared_by_all_readers() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.left, self.right = nn.Linear(3, 5), nn.Linear(5, 1), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x).relu()
            return torch.cat([self.left(y), self.right(y)], 1)

    model = Two()
    l0 = L0(prunus.group(prunus.trace(model, torch.ones(2, 3))), start=0.5)
    model.right.load_state_dict(model.left.state_dict())
    l0.attach(model, SGD(model.parameters(), lr=0.1))
    model.train()
    found = [model(torch.ones(1, 3)).detach() for _ in range(8)]
    assert all(bool(each[0, 0] == each[0, 1]) for each in found)
    assert len({each[0, 0].item() for each in found}) > 4
    model.eval()
    assert len({model(torch.ones(1, 3))[0, 0].item() for _ in range(4)}) == 1


def test_gates_are_drawn_after_each_step_too_for_loops_that_call_a_part_and_alike_by_seed_and_step() -> None:
    """As a LightningModule does, whose training_step calls `self.net(x)`: the hook of the whole never fires."""
    inputs = torch.randn(4, 4)

    def run(steps: range, seed: int, state: Any = None) -> list[Tensor]:
        whole = nn.Sequential(net())
        l0, optimizer = L0(groups_of(whole), start=0.5, seed=seed), SGD(whole.parameters(), lr=0.0)
        l0.attach(whole, optimizer)
        l0.load_state_dict(state or l0.state_dict())
        found = []
        for _ in steps:
            found.append(whole[0](inputs).detach())
            optimizer.step()
        return found

    found = run(range(6), seed=3)
    assert all(not torch.equal(a, b) for a, b in pairwise(found))
    state = {"step": 4, "log_alpha": {name: torch.zeros(size) for name, size in (("0.0", 8), ("0.3", 6))}}
    assert all(torch.equal(a, b) for a, b in zip(run(range(4, 6), 3, state), found[4:], strict=True))
    assert not torch.equal(run(range(1), seed=4)[0], found[0])


def test_evaluation_is_as_before_until_gates_have_learned() -> None:
    model, inputs = net().eval(), torch.randn(5, 4)
    model[1].momentum = 0.0
    before = model(inputs)
    with L0(groups_of(model)).attach(model, SGD(model.parameters(), lr=0.1)):
        assert torch.equal(model(inputs), before)
        assert not torch.equal(model.train()(inputs), model(inputs))
        assert torch.equal(model.eval()(inputs), before)
    assert torch.equal(model(inputs), before)


def test_folding_leaves_what_is_computed_and_all_names_parameters_and_the_optimizer() -> None:
    model, inputs = net(), torch.randn(5, 4)
    names, parameters, kinds = list(model.state_dict()), list(model.parameters()), [type(m) for m in model.modules()]
    optimizer = AdamW(model.parameters(), lr=0.05)
    l0 = L0(groups_of(model), strength=1.0, lr=0.5)
    with l0.attach(model, optimizer):
        assert [len(g["params"]) for g in optimizer.param_groups] == [len(parameters), 2]
        assert (optimizer.param_groups[1]["lr"], optimizer.param_groups[1]["weight_decay"]) == (0.5, 0.0)
        assert list(model.state_dict()) == names
        assert list(model.parameters()) == parameters
        assert isinstance(model[3], nn.Linear)
        for _ in range(30):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
        expected = model.eval()(inputs)
        copied = copy.deepcopy(model)
        model.train()
    assert torch.equal(model.eval()(inputs), expected)
    assert torch.equal(copied(inputs), expected)
    assert list(model.state_dict()) == names
    assert [type(m) for m in model.modules()] == kinds
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), parameters, strict=True))
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.state) == len(parameters)
    model(inputs).square().mean().backward()
    optimizer.step()  # it still trains


def test_gates_close_on_what_is_not_needed_and_the_cut_is_free() -> None:
    """Only two of the inputs count, through a hidden layer of twelve."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 1))
    groups = prunus.group(prunus.trace(model, torch.ones(4, 4)))
    inputs = torch.randn(256, 4)
    targets = inputs[:, :1].relu() - inputs[:, 1:2].relu()
    optimizer = Adam(model.parameters(), lr=0.01)
    l0 = L0(groups, strength=0.5, lr=0.05, steps=200)
    with l0.attach(model, optimizer):
        for _ in range(800):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    model.eval()
    silent = settled(gates_of(l0)["0"].detach()) == 0
    assert 3 <= int(silent.sum()) <= 10
    plan = prunus.allocate(groups, l0.scores(), Budget("units", at_most=float((~silent).double().mean())))
    assert torch.equal(plan.keep["0"], ~silent)
    small = prunus.shrink(model, plan)
    torch.testing.assert_close(small(inputs), model(inputs))
    assert nn.functional.mse_loss(small(inputs), targets).item() < 0.05


def test_a_compiled_model_is_gated_too() -> None:
    model = net().eval()
    l0 = L0(groups_of(model))
    compiled: Any = torch.compile(model, backend="eager")
    before = compiled(torch.ones(2, 4))
    with l0.attach(compiled, SGD(model.parameters(), lr=0.1)):
        closed(l0, {"0": torch.zeros(8, dtype=torch.bool), "3": torch.ones(6, dtype=torch.bool)})
        torch.testing.assert_close(compiled(torch.ones(2, 4)), model(torch.ones(2, 4)))
        assert not torch.equal(compiled(torch.ones(2, 4)), before)
        model.train()
        gates_of(l0)["0"].data.fill_(0.0)
        inputs = torch.randn(8, 4)
        assert not torch.equal(compiled(inputs), compiled(inputs))


def test_a_killed_run_goes_on_to_the_same_bits() -> None:
    def started(seed: int) -> tuple[Any, ...]:
        model = net(seed)
        return model, AdamW(model.parameters(), lr=0.01), L0(groups_of(model), strength=0.5, lr=0.1, steps=6)

    def train(model: nn.Module, optimizer: AdamW, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    for at in (0, 3, 8):
        first = started(0)
        ride = first[2].attach(*first[:2])
        train(*first[:2], steps=range(at))
        file = io.BytesIO()
        torch.save([part.state_dict() for part in first], file)
        train(*first[:2], steps=range(at, 10))
        ride.detach()
        again = started(1)
        ride = again[2].attach(*again[:2])
        file.seek(0)
        for part, state in zip(again, torch.load(file), strict=True):
            part.load_state_dict(state)
        train(*again[:2], steps=range(at, 10))
        ride.detach()
        assert again[2].step == first[2].step == 10
        assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), again[0].parameters(), strict=True))
        assert all(torch.equal(first[2].scores()[name], value) for name, value in again[2].scores().items())


def test_a_graph_model_is_gated_too() -> None:
    model = Stubborn().eval()
    groups = prunus.group(prunus.trace(model, torch.randn(2, 3, 16))).only(kind="head")
    half = prunus.allocate(groups, prunus.score(model, groups, prunus.criteria.magnitude), Budget("units", 0.5))
    small, inputs = prunus.shrink(model, half), torch.randn(2, 3, 16)
    assert isinstance(small, prunus.GraphModel)
    before, l0 = small(inputs), L0(groups.at(half))
    with l0.attach(small, SGD(small.parameters(), lr=0.1)):
        assert torch.equal(small(inputs), before)
        closed(l0, {groups.items[0].name: torch.tensor([True, False])})
        gated = small(inputs)
        assert not torch.allclose(gated, before)
    torch.testing.assert_close(small(inputs), gated)


# errors


@pytest.mark.parametrize("start", [0.0, 1.0, -1.0])
def test_a_start_that_is_no_chance_is_refused(start: float) -> None:
    with pytest.raises(PlanError, match="expected a chance between 0 and 1, neither of them"):
        L0(groups_of(net()), start=start)


def test_units_within_tensors_are_refused() -> None:
    with pytest.raises(GroupError, match=r"gates units of whole axes, and Element\(\) lies within tensors"):
        L0(prunus.group(net(), pattern=Element()))


def test_what_products_of_activations_add_up_is_refused() -> None:
    """Queries and keys of a head's dimension are made with its values, by one weight, and never read by any."""
    model = PackedAttention(8, 2, 4, how=0, fused=True)
    groups = prunus.group(prunus.trace(model, torch.randn(2, 3, 8)))
    with pytest.raises(GroupError, match=r"L0 cannot gate group .* products of activations add it up before"):
        L0(groups.only(kind="head_dim"))
    L0(groups.only(kind="head"))


def test_what_no_weight_reads_is_refused() -> None:
    model = Attention(8, 2, 2, 4, core=0, bias=True)
    groups = prunus.group(prunus.trace(model, torch.randn(2, 3, 8)))
    with pytest.raises(GroupError, match=r"L0 cannot gate group .* no weight reads it"):
        L0(groups.only(kind="head_dim"))


def test_a_tied_reader_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    groups = prunus.group(prunus.trace(Tied(), torch.randint(0, 7, (2, 3))))
    with pytest.raises(GroupError, match="which reads it, is tied to another weight"):
        L0(groups)


def test_a_recurrent_reader_is_refused_and_nothing_is_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.RNN(6, 3, batch_first=True))
    groups = prunus.group(prunus.trace(model, torch.randn(2, 3, 4))).only("0")
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(GroupError, match="is packed away by its RNN"):
        L0(groups).attach(model, optimizer)
    assert (len(optimizer.param_groups), len(optimizer._optimizer_step_pre_hooks)) == (1, 0)


def test_no_optimizer_is_refused() -> None:
    model = net()
    with pytest.raises(PlanError, match="was given no optimizer to step with"):
        L0(groups_of(model)).attach(model)


def test_a_second_attach_is_refused() -> None:
    model = net()
    l0, optimizer = L0(groups_of(model)), SGD(model.parameters(), lr=0.1)
    with l0.attach(model, optimizer), pytest.raises(PlanError, match="was attached before"):
        l0.attach(model, optimizer)
    with pytest.raises(PlanError, match="was attached before"):
        l0.attach(model, optimizer)


def test_a_value_before_there_are_gates_is_refused() -> None:
    model = net()
    with pytest.raises(PlanError, match="needs the gates of a model; attach it first"):
        L0(groups_of(model)).penalty(model)


def test_norms_are_those_of_all_that_units_own() -> None:
    model = net()
    found = norms(model, groups_of(model))["3"]
    parts = [model[3].weight, model[3].bias[:, None], model[5].weight.T]
    torch.testing.assert_close(found, torch.cat(parts, 1).norm(dim=1).detach())
