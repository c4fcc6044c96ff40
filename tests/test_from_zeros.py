"""Plans of the zeros that something else has made: what they find, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given
from nets import Conv1D, Fn, Recipe, Step, parameter, recipes
from test_laws import laws, run, seeds, traced
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import parametrize, prune
from units import random_plan, zeroed
from vision import models

import prunus
from prunus import Block, Channel, Element, NofM, group, plan_from_zeros, shrink, trace, verify
from prunus.errors import PlanError
from prunus.graph.groups import Groups
from prunus.graph.interpret import Outside, execute, operate
from prunus.graph.nest import input_tensors
from prunus.graph.node import Node, signature
from prunus.graph.private import state_of
from prunus.graph.rules import recurrent
from prunus.graph.see import Place
from prunus.graph.still import dead_units
from prunus.graph.width import positions
from prunus.plan import Plan
from prunus.types import Inputs


def gone(plan: Plan) -> dict[str, list[int]]:
    """Group -> the units that go."""
    removed = {name: (~mask).nonzero().flatten().tolist() for name, mask in plan.keep.items()}
    return {name: units for name, units in removed.items() if units}


def zero(model: nn.Module, units: list[int], *names: str, dim: int = 0) -> None:
    for name in names:
        model.get_parameter(name).detach().index_fill_(dim, torch.tensor(units), 0)


def doubled(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, every vector away from zero and one."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.detach().add_(torch.rand(tensor.shape).mul_(0.4).add_(0.1))
    return model.double().eval()


def assert_same(a: nn.Module, b: nn.Module, inputs: Tensor) -> None:
    torch.testing.assert_close(run(a, inputs.clone()), run(b, inputs.clone()), rtol=1e-9, atol=1e-9)


# Laws over random networks


def zero_at_random(model: nn.Module, groups: Groups, seed: int) -> None:
    """Some slices of some of the tensors of each group: filters, biases, scales, shifts, columns that read."""
    draw = torch.Generator().manual_seed(seed)
    state = state_of(model).tensors
    for each in groups:
        for member in each.members:
            chosen = torch.rand(each.size, generator=draw) < 0.5 * (torch.rand((), generator=draw) < 0.7)
            if state[member.state].is_floating_point():
                rows = groups.index(each, member)[chosen].flatten()
                state[member.state].detach().index_fill_(member.dim, rows, 0)


def doubles(recipe: Recipe) -> tuple[nn.Module, Tensor, Groups]:
    return traced(recipe, double=True)


@laws(25)
@given(recipes(), seeds)
def test_without_constants_what_is_removed_changes_nothing(recipe: Recipe, seed: int) -> None:
    model, inputs, groups = doubles(recipe)
    zero_at_random(model, groups, seed)
    try:
        plan = plan_from_zeros(model, groups, constants=False)
    except PlanError:  # a whole group is dead
        assume(False)
        raise
    assert "constants" not in plan.provenance or not plan.provenance["constants"]
    small = shrink(model, plan, verify=False)
    other = inputs.roll(1, -1) * 3 if inputs.is_floating_point() else inputs.roll(1, -1)
    assert_same(small, model, inputs)
    assert_same(small, model, other)


PADDED = Recipe("image", (Step("residual"), Step("pad", 0, 1), Step("transposed", 0, 0, 1)))
"""Channels padded to a number that the groups of a convolution do not share with them."""


@laws(15)
@example(PADDED, 0)
@given(recipes(), seeds)
def test_units_all_of_whose_state_is_zero_are_found(recipe: Recipe, seed: int) -> None:
    assume(
        "mixture" not in {step.block for step in recipe.steps}
    )  # dead rows of what is looked up are not followed yet
    model, _, groups = doubles(recipe)
    assume(not groups.ties)  # a tied group may have to keep some
    plan = random_plan(groups.only(exact=True), seed)
    model = zeroed(model, plan)
    read = dead_units(groups.graph, state_of(model).tensors)
    try:
        found = plan_from_zeros(model, groups, constants=False)
    except PlanError:
        assume(False)
        raise
    for name, keep in plan.keep.items():
        if groups[name].leaf in read and not bool(keep.all()):  # else nothing reads them at all
            assert not bool((found.keep[name] & ~keep).any()), name


def factors(groups: Groups, state: Mapping[str, Tensor], inputs: Tensor) -> dict[tuple[str, Place, int], Tensor]:
    """(node, place, dimension) -> what is added up there in a run of the graph."""
    found: dict[tuple[str, Place, int], Tensor] = {}
    notes = groups.graph.eval.inferred.notes

    def call(node: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        bound = {**dict(zip(signature(node.op)[0], args, strict=False)), **kwargs}
        for read in notes[node.name].reads:
            value = bound[read.place.arg]
            value = value if read.place.index is None else value[read.place.index]
            found[node.name, read.place, read.dim] = value.clone()
        return operate(node, args, kwargs)

    tensors = {path: inputs.clone() for path in input_tensors(Inputs((inputs,)))}
    execute(groups.graph.eval.program, Outside(state.__getitem__, groups.graph.constants, tensors), call)
    return found


@laws(30)
@given(recipes("image", "features", most=3), seeds)
def test_still_units_are_the_same_or_times_zero_wherever_they_are_read(recipe: Recipe, seed: int) -> None:
    model, inputs, groups = doubles(recipe)
    zero_at_random(model, groups, seed)
    state = {name: tensor.detach() for name, tensor in state_of(model).tensors.items()}
    one, two = (factors(groups, state, x) for x in (inputs, inputs.flip(0) * 3 + 1))
    facts, inferred = dead_units(groups.graph, state), groups.graph.eval.inferred
    for node in groups.graph.eval.program.nodes:
        reads = inferred.notes[node.name].reads if node.name in inferred.notes and node.name in inferred.live else []
        if node.plain in recurrent.RULES:  # what it adds up are products with states inside: see test_recurrent.py
            continue
        for leaf in {leaf for read in reads for leaf in read.over.leaves()} & {g.leaf for g in groups.only(exact=True)}:
            same, blank = torch.ones(leaf.size, dtype=torch.bool), torch.zeros(leaf.size, dtype=torch.bool)
            for read in (r for r in reads if leaf in set(r.over.leaves())):
                axis = inferred.of(node.bound()[read.place.arg].name)[read.dim]
                rows, key = positions(axis)[leaf], (node.name, read.place, read.dim)
                a, b = (run[key].movedim(read.dim, 0)[rows].flatten(1) for run in (one, two))
                same &= torch.isclose(a, b, rtol=1e-9, atol=1e-12).all(1)
                blank |= (a == 0).all(1) & (b == 0).all(1)
            assert not bool((facts[leaf].still & ~same & ~blank).any())
            assert not bool((facts[leaf].zero & ~blank).any())


# What once made, or could make, a removal that changes something: unit 1 of `a` is zero where it is made.


def made(function: Callable[..., Tensor], **modules: nn.Module) -> nn.Module:
    model = Fn(function, a=nn.Linear(4, 6), b=nn.Linear(6, 3), **modules)
    zero(model, [1], "a.weight", "a.bias")
    return model


def written_in_place(act: Callable[[Tensor], object]) -> nn.Module:
    def forward(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        y = a(x)
        act(y)
        return b(y)

    return made(forward)


def beside(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
    y = torch.zeros(12, dtype=x.dtype)
    y[6:] = 1
    return c(torch.cat([h := a(x), h], 1) + y)


def assigned(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
    y = torch.zeros(x.shape[0], 12, dtype=x.dtype)
    y[:, :6], y[:, 6:] = (h := a(x)), h.cos()
    return c(y)


def pairs(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
    return c(((y := a(x))[:, :, None] + y[:, None, :]).flatten(1))


def products(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module, other: nn.Module) -> Tensor:
    y, z = a(x), other(x)
    return c((y[:, :, None] * z[:, None, :]).flatten(1)) + b(y + z)


def two_sums(x: Tensor, a: nn.Module, b: nn.Module, other: nn.Module) -> Tensor:
    y, z = a(x), other(x)
    return torch.einsum("ni,nj->n", y, z)[:, None] + b(y * z)


def rows_only(x: Tensor, a: nn.Module, b: nn.Module, square: nn.Module) -> Tensor:
    y = a(x) + 1
    return torch.einsum("ni,ij,nj->n", y, square[0], y)[:, None]


def rows_zero() -> nn.Module:
    model = made(rows_only, square=parameter(6, 6))
    zero(model, [1], "square.0")
    return model


ALIVE: dict[str, Callable[[], nn.Module]] = {
    "a number added": lambda: made(lambda x, a, b: b(a(x) + 1)),
    "a number less": lambda: made(lambda x, a, b: b(F.relu(a(x)) - 1)),
    "less than a number": lambda: made(lambda x, a, b: b(1 - a(x))),
    "sigmoid": lambda: made(lambda x, a, b: b(a(x).sigmoid())),
    "clamp": lambda: made(lambda x, a, b: b(a(x).clamp(min=0.5))),
    "exp": lambda: made(lambda x, a, b: b(a(x).exp())),
    "cos in place": lambda: written_in_place(lambda y: y.cos_()),
    "a view in place": lambda: written_in_place(lambda y: y.unsqueeze(1).add_(1)),
    "dropout hands on": lambda: written_in_place(lambda y: F.dropout(y, training=False).add_(1)),
    "constants in place": lambda: made(beside, c=nn.Linear(12, 3)),
    "slices in place": lambda: made(assigned, c=nn.Linear(12, 3)),
    "where": lambda: made(lambda x, a, b: b(torch.where(x[:, :1] > 0, a(x), 2.0))),
    "masked": lambda: made(lambda x, a, b: b(a(x).masked_fill(x[:, :1] > 0, 2.0))),
    "all pairs added": lambda: made(pairs, c=nn.Linear(36, 3)),
    "pairs with another": lambda: made(products, c=nn.Linear(36, 3), other=nn.Linear(4, 6)),
    "two sums of one einsum": lambda: made(two_sums, other=nn.Linear(4, 6)),
    "rows, not columns": rows_zero,
    "a buffer added": lambda: made(lambda x, a, b, shift: b(a(x) + shift[0]), shift=parameter(6)),
    "softmax of few": lambda: made(lambda x, a, b: b(a(x).view(-1, 6, 1).softmax(-1).flatten(1))),
    "norm": lambda: made(lambda x, a, b, n: b(n(a(x))), n=nn.BatchNorm1d(6)),
}


@pytest.mark.parametrize("name", ALIVE)
def test_a_unit_that_is_not_zero_where_it_is_read_stays(name: str) -> None:
    torch.manual_seed(0)
    model = ALIVE[name]()
    if name == "norm":  # a mean that is not zero
        model = doubled(model)
        zero(model, [1], "a.weight", "a.bias", "n.bias")
    model, inputs = model.double().eval(), torch.randn(5, 4).double()
    plan = plan_from_zeros(model, trace(model, inputs), constants=False)
    assert not gone(plan)
    assert_same(shrink(model, plan, verify=False), model, inputs)


DEAD: dict[str, Callable[[], nn.Module]] = {
    "odd functions": lambda: made(lambda x, a, b: b(F.gelu(a(x).tanh_()) * 3 / 2)),
    "a gate": lambda: made(lambda x, a, b: b(a(x) * x[:, :1].sigmoid())),
    "a logical mask": lambda: made(lambda x, a, b: b(a(x) * ~((x[:, :1] > 0) & (x[:, 1:2] > 0)))),
    "a residual": lambda: made(lambda x, a, b, f: b((y := a(x)) + y * f(y)), f=nn.Linear(6, 1)),
    "both halves": lambda: made(lambda x, a, b, c: c(torch.cat([y := a(x), F.relu(y)], 1)), c=nn.Linear(12, 3)),
    "a channel of maps": lambda: made(
        lambda x, a, b, c: c(F.avg_pool2d(F.max_pool2d(a(x)[..., None, None].repeat(1, 1, 4, 4), 3), 1)).flatten(1),
        c=nn.Conv2d(6, 2, 1),
    ),
    "addmm": lambda: made(lambda x, a, b, c: c(a(x)), c=Conv1D(6, 3)),
    "a plain sum": lambda: made(lambda x, a, b: a(x).sum(1, keepdim=True)),
}


@pytest.mark.parametrize("name", DEAD)
def test_a_unit_that_is_zero_where_it_is_read_goes(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = DEAD[name]().double().eval(), torch.randn(5, 4).double()
    plan = plan_from_zeros(model, trace(model, inputs), constants=False)
    assert list(gone(plan).values()) == [[1]]
    assert_same(shrink(model, plan), model, inputs)


# What train mode does


class Train(nn.Module):
    """`a`, then `b`; in training mode through `act`, beside which only train mode may read."""

    def __init__(self, act: Callable[[Train, Tensor], Tensor], middle: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.middle, self.b = nn.Conv2d(3, 6, 3), middle or nn.Identity(), nn.Conv2d(6, 2, 1)
        self.other, self.act = nn.Conv2d(6, 2, 1), act

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self.a(x))
        return self.act(self, y) if self.training else self.b(y)


def drop_path(model: Train, y: Tensor) -> Tensor:
    return model.b(y * y.new_empty(y.shape[0], 1, 1, 1).bernoulli_(0.8).div_(0.8))


def bernoulli_path(model: Train, y: Tensor) -> Tensor:
    return model.b(y * torch.bernoulli(torch.full((y.shape[0], 1, 1, 1), 0.5)))


@pytest.mark.parametrize("constants", [True, False])
def test_units_that_only_train_mode_reads_stay(constants: bool) -> None:
    model, inputs = Train(lambda m, y: m.b(y) + 0.3 * m.other(y)), torch.randn(2, 3, 6, 6)
    zero(model, [0, 1, 2, 3], "b.weight", dim=1)
    zero(model, [3], "other.weight", dim=1)
    model.double().eval()
    plan = plan_from_zeros(model, trace(model, inputs.double()), constants=constants)
    assert gone(plan) == {"a": [3]}
    small = shrink(model, plan, verify=False)
    assert_same(small.train(), model.train(), inputs.double())


TRAIN: dict[str, tuple[Callable[[Train, Tensor], Tensor], Callable[[], nn.Module]]] = {
    "batch norm": (lambda m, y: m.b(y), lambda: nn.BatchNorm2d(6)),
    "instance norm": (lambda m, y: m.b(y), lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True)),
    "dropout": (lambda m, y: m.b(F.dropout(y)), nn.Identity),
    "dropout of channels": (lambda m, y: m.b(y), lambda: nn.Dropout2d(0.3)),
    "drop path": (drop_path, nn.Identity),
    "a path drawn": (bernoulli_path, nn.Identity),
    "no training": (lambda m, y: m.b(y[:, :, 0, 0].item()), nn.Identity),
}


@pytest.mark.parametrize("constants", [True, False])
@pytest.mark.parametrize("name", TRAIN)
def test_dead_units_go_whatever_train_mode_does(name: str, constants: bool) -> None:
    torch.manual_seed(0)
    act, middle = TRAIN[name]
    model = doubled(Train(act, middle()))
    zero(model, [1], "a.weight", *(() if constants else ("a.bias",)))
    if "norm" in name and not constants:
        zero(model, [1], "middle.bias")
        model.get_buffer("middle.running_mean")[1] = 0
    assert gone(plan_from_zeros(model, trace(model, torch.randn(2, 3, 6, 6).double()), constants=constants)) == {
        "a": [1]
    }


@pytest.mark.parametrize("training", [True, False])
def test_the_running_mean_counts_where_it_is_used(training: bool) -> None:
    model = doubled(Train(lambda m, y: m.b(y), nn.BatchNorm2d(6)))
    zero(model, [1], "a.weight", "a.bias", "middle.bias")
    if training:  # a norm that stays as it is in training
        model.get_buffer("middle.running_mean")[1] = 0
        model.act = lambda m, y: m.b(F.batch_norm(y, m.middle.running_mean + 1, m.middle.running_var))
    assert not gone(plan_from_zeros(model, trace(model, torch.randn(2, 3, 6, 6).double()), constants=False))


@pytest.mark.parametrize(
    "draw",
    [torch.rand_like, lambda y: torch.bernoulli(y, 0.5), lambda y: torch.bernoulli(torch.full((6, 1, 1), 0.5))],
    ids=["uniform", "each", "channels"],
)
def test_nothing_is_taken_for_zero_by_the_luck_of_a_draw(draw: Callable[[Tensor], Tensor]) -> None:
    model = Train(lambda m, y: m.b(y) + m.other(draw(y) + y)).double().eval()
    zero(model, [1], "a.weight", "a.bias")
    graph = trace(model, torch.randn(2, 3, 6, 6).double())
    state = torch.get_rng_state()
    for seed in range(8):
        torch.manual_seed(seed)
        assert not gone(plan_from_zeros(model, graph, constants=False))
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(seed).get_state())
    torch.set_rng_state(state)


# What other tools leave


def pruned_net(kind: str) -> nn.Module:
    norm: Callable[[], nn.Module] = nn.Identity if "plain" in kind else lambda: nn.BatchNorm2d(8)
    first = nn.Conv2d(3, 8, 3, padding=1, bias="bias" in kind)
    second = nn.Conv2d(8, 8, 3, padding=1, bias="bias" in kind)
    body = nn.Sequential(first, norm(), nn.ReLU(inplace=True), second, norm())
    if "residual" not in kind:
        return nn.Sequential(body, nn.ReLU(), nn.Conv2d(8, 4, 1))
    return nn.Sequential(
        nn.Conv2d(3, 3, 1),
        Fn(lambda x, body, short: F.relu(body(x) + short(x)), body=body, short=nn.Conv2d(3, 8, 1)),
        nn.Conv2d(8, 4, 1),
    )


@pytest.mark.parametrize("removed", [True, False])
@pytest.mark.parametrize("kind", ["plain", "plain bias", "norm", "norm bias", "norm residual"])
def test_filters_pruned_by_torch_become_a_smaller_net(kind: str, removed: bool) -> None:
    torch.manual_seed(0)
    model = doubled(pruned_net(kind))
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 8)
    prune.ln_structured(conv, "weight", amount=5, n=1, dim=0)
    if removed:
        prune.remove(conv, "weight")
    inputs = torch.randn(2, 3, 5, 5).double()
    run(model, inputs)
    zeros = (conv.weight.flatten(1) == 0).all(1).nonzero().flatten().tolist()
    plan = plan_from_zeros(model, trace(model, inputs))
    small = shrink(model, plan, verify=False)
    assert max(verify(model, small, plan).errors.values()) < 1e-9
    assert list(gone(plan).values()) == [zeros]
    assert len(zeros) == 5
    at = next(name for name, module in model.named_modules() if module is conv)
    names = ("weight",) if removed else ("weight_orig", "weight_mask")
    assert {small.state_dict()[f"{at}.{name}"].shape for name in names} == {(3, 3, 3, 3)}
    assert run(small, inputs).shape == run(model, inputs).shape
    kept_constants = 0 if kind == "plain" else 5  # a bias or shift went on
    assert sum(plan.provenance["constants"].values()) == kept_constants
    assert bool(gone(plan_from_zeros(model, trace(model, inputs), constants=False))) == (kept_constants == 0)


def test_scales_of_a_norm_that_were_trained_to_zero() -> None:
    model = doubled(pruned_net("norm"))
    zero(model, [0, 2, 5], "0.1.weight")
    zero(model, [2], "0.1.bias")
    inputs = torch.randn(2, 3, 5, 5).double()
    graph = trace(model, inputs)
    plan = plan_from_zeros(model, graph)
    assert gone(plan) == {"0.0": [0, 2, 5]}
    assert plan.provenance["constants"] == {"0.0": 2}
    assert shrink(model, plan)[0][1].num_features == 5
    exact = plan_from_zeros(model, group(graph), constants=False)
    assert gone(exact) == {"0.0": [2]}
    assert_same(shrink(model, exact), model, inputs)


def test_columns_that_read_nothing() -> None:
    model, inputs = doubled(pruned_net("norm")), torch.randn(2, 3, 5, 5).double()
    zero(model, [1, 6], "0.3.weight", dim=1)
    plan = plan_from_zeros(model, trace(model, inputs), constants=False)
    assert gone(plan) == {"0.0": [1, 6]}
    assert_same(shrink(model, plan), model, inputs)


class Masked(nn.Linear):
    """Another tool's: the mask is a buffer, multiplied in the forward."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__(wide, out, bias=False)
        self.register_buffer("keep", (torch.arange(out) % 2 == 0)[:, None].float())

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.keep)


def test_masks_multiplied_in_the_forward() -> None:
    model, inputs = nn.Sequential(Masked(4, 6), nn.ReLU(), nn.Linear(6, 2)).double().eval(), torch.randn(3, 4).double()
    plan = plan_from_zeros(model, trace(model, inputs), constants=False)
    assert gone(plan) == {"0": [1, 3, 5]}
    assert_same(shrink(model, plan), model, inputs)


def test_nothing_is_written_to_the_model() -> None:
    class Counts(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 6)
            self.register_buffer("calls", torch.zeros(6))

        def forward(self, input: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(input) + self.calls

    model = nn.Sequential(Counts(), nn.ReLU(), nn.Linear(6, 2)).eval()
    zero(model, [1], "0.weight", "0.bias")
    plan = plan_from_zeros(model, trace(model, torch.randn(3, 4)), constants=False)
    assert not gone(plan)
    assert model[0].calls.tolist() == [0] * 6


# Counts, ties, errors


def test_counts_are_rounded_up_and_ties_kept() -> None:
    model, inputs = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2)), torch.randn(3, 4)
    zero(model, [0, 3, 4, 7, 9], "0.weight")
    plan = plan_from_zeros(model, group(trace(model, inputs), pattern=Channel(round_to=4)))
    assert [int(mask.sum()) for mask in plan.keep.values()] == [8]
    assert set(gone(plan)["0"]) < {0, 3, 4, 7, 9}
    assert plan.provenance["constants"] == {"0": 4}
    halves = Fn(
        lambda x, a, b, c: b((y := a(x).chunk(2, 1))[0]) + c(y[1]),
        a=nn.Linear(4, 12),
        b=nn.Linear(6, 2),
        c=nn.Linear(6, 2),
    )
    zero(halves, [0, 1, 2, 8], "a.weight", "a.bias")
    plan = plan_from_zeros(halves, trace(halves, inputs))
    assert sorted(map(len, gone(plan).values())) == [1, 1]
    assert shrink(halves, plan).a.out_features == 10


def test_a_group_that_is_dead_throughout_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model, list(range(6)), "0.weight")
    graph = trace(model, torch.randn(3, 4))
    with pytest.raises(PlanError, match="Every unit of '0' is dead"):
        plan_from_zeros(model, graph)
    assert not gone(plan_from_zeros(model, graph, constants=False))


def test_groups_of_an_earlier_plan_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model, [1], "0.weight")
    groups = group(trace(model, torch.randn(3, 4)))
    plan = plan_from_zeros(model, groups)
    with pytest.raises(PlanError, match="trace the model as it is now"):
        plan_from_zeros(shrink(model, plan), groups.at(plan))


# Zeros within tensors


def zeros_of(plan: Plan) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in plan.keep.items()}


@pytest.mark.parametrize("removed", [True, False])
def test_single_weights_pruned_by_torch_are_held(removed: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2), nn.Linear(2, 2))
    prune.random_unstructured(model[0], "weight", 10)
    nn.init.zeros_(model[3].weight)
    if removed:
        prune.remove(model[0], "weight")
    name = "0.weight" if removed else "0.weight_orig"
    plan = plan_from_zeros(model)
    assert isinstance(plan.groups.pattern, Element)
    assert zeros_of(plan) == {name: 10, "2.weight": 0}  # a tensor that is zero throughout is left alone
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with prunus.mask(model, plan, optimizer):
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
    assert int((model.get_parameter(name) == 0).sum()) == 10
    assert bool((model[3].weight != 0).any())


class Times(nn.Module):
    """A mask that another tool registers as a parametrization; it counts its calls."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * self.mask


@pytest.mark.parametrize("path", ["", "0"])
def test_masks_of_parametrizations_are_held(path: str) -> None:
    layer = nn.Linear(4, 6)
    model = nn.Sequential(layer, nn.Linear(6, 2)) if path else layer
    parametrize.register_parametrization(layer, "weight", Times((torch.arange(24).view(6, 4) % 3 > 0).float()))
    before = [t.clone() for t in model.state_dict().values()]
    plan = plan_from_zeros(model, group(model, pattern=Element()))
    assert zeros_of(plan)[f"{path}.parametrizations.weight.original".lstrip(".")] == 8
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_masks_of_torch_sparsifiers_are_held() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 4), zeros_per_block=4)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    zeros = int((model[0].weight == 0).sum())
    assert zeros
    assert zeros_of(plan_from_zeros(model))["0.parametrizations.weight.original"] == zeros


def test_cells_and_blocks_are_found_and_others_named() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    model[0].weight.detach().view(4, 2, 4)[:, :, :2] = 0
    plan = plan_from_zeros(model, group(model, pattern=NofM(2, 4)))
    assert zeros_of(plan) == {"0.weight": 16}
    with prunus.mask(model, plan):
        assert int((model[0].weight == 0).sum()) == 16
    assert zeros_of(plan_from_zeros(model, group(model, pattern=Block(4, 1)))) == {"0.weight": 4}
    model[0].weight.detach()[3, 0] = 1
    with pytest.raises(PlanError, match=r"'0.weight' has 3 weights that are not zero among 4 consecutive inputs"):
        plan_from_zeros(model, group(model, pattern=NofM(2, 4)))


# torchvision


def vit() -> nn.Module:
    return models.VisionTransformer(32, 8, 2, 4, hidden_dim=32, mlp_dim=48, num_classes=5)


VISION: dict[str, tuple[Callable[[], nn.Module], Mapping[str, tuple[str, ...]]]] = {
    "resnet18": (models.resnet18, {"layer1.0.conv1": (".weight",), "layer1.0.bn1": (".weight", ".bias")}),
    "mobilenet_v2": (
        models.mobilenet_v2,
        {"features.2.conv.0.1": (".weight", ".bias"), "features.2.conv.1.1": (".bias",)},
    ),
    "vit": (vit, {"encoder.layers.encoder_layer_1.mlp.0": (".weight", ".bias")}),
}


@pytest.mark.parametrize("name", VISION)
def test_zeroed_channels_of_known_networks_go_and_nothing_changes(name: str) -> None:
    torch.manual_seed(0)
    make, places = VISION[name]
    model = doubled(make())
    units = [0, 3, 11]
    zero(model, units, *(module + end for module, ends in places.items() for end in ends))
    if name == "mobilenet_v2":
        model.get_buffer("features.2.conv.1.1.running_mean")[units] = 0
    inputs = torch.randn(2, 3, 32, 32).double()
    plan = plan_from_zeros(model, trace(model, inputs), constants=False)
    assert list(gone(plan).values()) == [units]
    small = shrink(model, plan, verify=False)
    assert type(small) is type(model)
    assert_same(small, model, inputs)
