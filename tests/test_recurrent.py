"""Recurrent layers lose hidden units: the rules are held to torch's own operations, the smaller models to the original.

What was removed is read off the values of the smaller model, without any part of the library: they are all different.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus.apply.redraw import redrawer
from prunus.errors import PlanError
from prunus.graph.width import positions
from prunus.measure.macs import macs
from prunus.types import Inputs

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

HALF = prunus.Budget("units", at_most=0.5)
KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "both ways": {"bidirectional": True},
    "two layers, both ways, batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no bias, batch first": {"bias": False, "batch_first": True},
    "two layers, no bias, dropout": {"num_layers": 2, "bias": False, "dropout": 0.5},
}
PROJECTED: dict[str, dict[str, Any]] = {
    "projected": {"proj_size": 4},
    "projected, two layers, both ways": {"proj_size": 4, "num_layers": 2, "bidirectional": True},
    "projected, no bias": {"proj_size": 4, "bias": False, "batch_first": True},
}
EVERY = [*itertools.product(KINDS, FORMS), *itertools.product(["lstm"], PROJECTED)]
CELLS: dict[str, Callable[[], nn.RNNCellBase]] = {
    "lstm": lambda: nn.LSTMCell(8, 6),
    "gru": lambda: nn.GRUCell(8, 6),
    "tanh": lambda: nn.RNNCell(8, 6),
    "relu, no bias": lambda: nn.RNNCell(8, 6, bias=False, nonlinearity="relu"),
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


WORDS = draw(3, 5, 4)


def last(state: Any) -> Tensor:
    """The hidden state of an LSTM or of any other."""
    return state[0] if isinstance(state, tuple) else state


class Net(nn.Module):
    """A recurrent layer between linear ones; `read` takes what goes on of its results."""

    def __init__(self, rnn: nn.RNNBase, read: Callable[[Tensor, Any], Tensor] = lambda y, _: y, out: int = 0) -> None:
        super().__init__()
        directions = 2 if rnn.bidirectional else 1
        self.up, self.rnn = nn.Linear(4, rnn.input_size), rnn
        self.down = nn.Linear(out or directions * (rnn.proj_size or rnn.hidden_size), 3)
        self.read = read

    def forward(self, x: Tensor, *states: Any) -> Tensor:
        return self.down(self.read(*self.rnn(self.up(x), *states)))


class Steps(nn.Module):
    """A cell called once a step, from a zero state."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.up, self.cell, self.down = nn.Linear(4, cell.input_size), cell, nn.Linear(cell.hidden_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.up(x).unbind(1):
            state = self.cell(step, state)
        return self.down(last(state))


def made(kind: str, form: str) -> Net:
    torch.manual_seed(0)
    with warnings.catch_warnings():  # that dropout needs two layers
        warnings.simplefilter("ignore")
        return Net(KINDS[kind](8, 6, **{**FORMS, **PROJECTED}[form])).eval()


def halved(model: nn.Module, inputs: Any) -> tuple[nn.Module, prunus.Plan]:
    """Half of every group's units go; shrink proves it."""
    groups = prunus.group(prunus.trace(model, inputs))
    plan = prunus.allocate(groups, prunus.score(model, groups, prunus.criteria.random), HALF, scope="layer")
    return prunus.shrink(model, plan), plan


@torch.no_grad()
def without(model: nn.Module, small: nn.Module) -> nn.Module:
    """The original with zeros for every value that the smaller model no longer has."""
    zeroed = copy.deepcopy(model)
    for tensor, left in zip(zeroed.parameters(), small.parameters(), strict=True):
        tensor.mul_(torch.isin(tensor, left))
    return zeroed


def assert_same(a: nn.Module, b: nn.Module, *args: Any) -> None:
    with torch.no_grad():
        torch.testing.assert_close(a(*args), b(*args))


@pytest.mark.parametrize(("kind", "form"), EVERY)
def test_half_of_a_recurrent_layer_is_the_original_without_the_other_half(kind: str, form: str) -> None:
    model = made(kind, form)
    small, plan = halved(model, WORDS)
    assert all(group.exact for group in plan.groups)
    assert type(small) is Net
    assert type(small.rnn) is type(model.rnn)
    assert (small.rnn.input_size, small.rnn.hidden_size, small.rnn.proj_size) == (4, 3, model.rnn.proj_size // 2)
    for name, tensor in small.rnn.named_parameters():
        assert tensor.shape[0] in (2, 3 * (tensor.shape[0] // 3)), name
    assert sum(p.numel() for p in small.parameters()) == plan.costs["params"][1]
    assert_same(without(model, small), small, draw(4, 7, 4))


@pytest.mark.parametrize("cell", CELLS)
def test_half_of_a_cell_is_the_original_without_the_other_half(cell: str) -> None:
    torch.manual_seed(0)
    model = Steps(CELLS[cell]())
    small, plan = halved(model, WORDS)
    assert [(g.size, g.exact) for g in plan.groups] == [(8, True), (6, True)]
    assert type(small.cell) is type(model.cell)
    assert (small.cell.input_size, small.cell.hidden_size) == (4, 3)
    assert_same(without(model, small), small, draw(4, 5, 4))


# Which units go together


def sizes(model: nn.Module, inputs: Any = WORDS) -> list[int]:
    """Of the groups of hidden units."""
    return [g.size for g in prunus.group(prunus.trace(model, inputs)) if not g.matches("up")]


def many(**options: Any) -> nn.RNNBase:
    return nn.LSTM(8, 6, num_layers=2, bidirectional=True, **options)


def test_every_layer_and_direction_has_units_of_its_own_where_nobody_reads_how_they_end() -> None:
    groups = prunus.group(prunus.trace(Net(many()), WORDS)).skip("up")
    assert [g.size for g in groups] == [6, 6, 6, 6]
    assert groups.ties == (tuple(g.name for g in groups),)
    projected = prunus.group(prunus.trace(Net(many(proj_size=4)), WORDS)).skip("up")
    assert sorted(map(len, projected.ties)) == [4, 4]
    assert sorted(g.size for g in projected) == [4] * 4 + [6] * 4


@pytest.mark.parametrize("state", [0, 1])
def test_layers_share_their_units_where_one_tensor_of_their_last_states_is_read(state: int) -> None:
    model = Net(many(), lambda y, ends: y[..., :6] + y[..., 6:] + ends[state].sum(0), out=6)
    small, plan = halved(model, WORDS)
    assert [g.size for g in plan.groups.skip("up")] == [6]
    assert_same(without(model, small), small, WORDS)


def test_layers_keep_units_of_their_own_in_what_their_projection_leaves_unread() -> None:
    """The hidden state is read, the memory is not."""
    model = Net(many(proj_size=4), lambda y, ends: ends[0].mean(0), out=4)
    assert sorted(sizes(model)) == [4, 6, 6, 6, 6]
    small, _ = halved(model, WORDS)
    assert_same(without(model, small), small, WORDS)


def test_a_state_that_the_caller_gives_fixes_the_units_and_says_why() -> None:
    model, state = Net(nn.GRU(8, 6, 2)), draw(2, 5, 6)
    graph = prunus.trace(model, (WORDS, state))
    assert [g.name for g in prunus.group(graph)] == ["up"]
    assert graph.fixed["rnn.weight_hh_l1[1]"] == "an input of the model"
    assert graph.fixed["rnn.weight_ih_l0[0]"] == "the gates of a recurrent layer; an input of the model"
    assert halved(model, (WORDS, state))[0].rnn.hidden_size == 6


def test_as_many_layers_as_units_are_told_apart() -> None:
    model = Net(nn.LSTM(2, 2, 2, bidirectional=True))
    small, _ = halved(model, WORDS)
    assert (type(small), small.rnn.hidden_size, small.rnn.num_layers) == (Net, 1, 2)


def test_weights_of_recurrent_layers_are_drawn_anew_as_such_and_their_biases_too() -> None:
    for model in (made("lstm", "two layers"), Steps(nn.GRUCell(8, 6))):
        drawn = redrawer(prunus.trace(model, WORDS), dict(model.named_parameters()))
        assert all(float(drawn(name).min()) < 0 < float(drawn(name).max()) for name, _ in model.named_parameters())


def test_a_projection_stays_narrower_or_wider_than_what_it_projects() -> None:
    model = Net(nn.LSTM(8, 6, proj_size=3))
    groups = prunus.group(prunus.trace(model, WORDS)).only("rnn:channel")
    plan = prunus.allocate(groups, prunus.score(model, groups, prunus.criteria.random), HALF)
    with pytest.raises(PlanError, match=r"'rnn' would have two sizes of 3 .* proj_size"):
        prunus.shrink(model, plan)


def test_units_that_are_the_output_of_the_model_are_fixed_in_every_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GRU(8, 6, 2))
    graph = prunus.trace(model, WORDS)
    assert [g.name for g in prunus.group(graph)] == ["0"]
    assert graph.fixed["1.weight_hh_l0[1]"] == "an output of the model"


class Learned(nn.Module):
    """The first state is a parameter, or zeros that `begin` makes something of."""

    def __init__(self, begin: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.rnn, self.down, self.start = nn.GRU(4, 6, 2), nn.Linear(6, 3), nn.Parameter(draw(2, 1, 6))
        self.begin = begin

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.rnn(x, self.begin(self)[:, : x.shape[1]])[0])


def test_a_learned_first_state_loses_the_units_with_all_layers() -> None:
    model = Learned(lambda self: self.start.expand(-1, 5, -1))
    small, plan = halved(model, WORDS)
    assert [(g.size, len(g.members)) for g in plan.groups] == [(6, 13)]
    assert small.start.shape == (2, 1, 3)
    assert_same(without(model, small), small, WORDS)


FIRST: dict[str, tuple[Callable[[Any], Tensor], int]] = {
    "zeros of the user": (lambda self: torch.zeros(2, 5, 6), 2),
    "zeros like another": (lambda self: torch.zeros_like(self.start).repeat(1, 5, 1).float(), 2),
    "zeros written to": (lambda self: torch.zeros(2, 5, 6).add_(1.0), 1),
    "zeros written to by another name": (lambda self: [z := torch.zeros(2, 5, 6), z[0].fill_(1.0), z][-1], 1),
    "zeros plus one": (lambda self: torch.zeros(2, 5, 6) + 1, 1),
    "ones": (lambda self: torch.ones(2, 5, 6), 1),
}


@pytest.mark.parametrize("first", FIRST)
def test_only_a_first_state_of_zeros_leaves_layers_units_of_their_own(first: str) -> None:
    begin, groups = FIRST[first]
    model = Learned(begin)
    small, plan = halved(model, WORDS)
    assert [g.size for g in plan.groups] == [6] * groups
    assert_same(without(model, small), small, WORDS)


class Total(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y.sum(-1, keepdim=True)


@pytest.mark.parametrize(("first", "exact"), [(torch.zeros, True), (torch.ones, False)])
def test_a_first_state_that_is_not_zero_stays_where_hidden_units_are_added_up(
    first: Callable[..., Tensor], exact: bool
) -> None:
    model = Learned(lambda self: first(2, 5, 6))
    model.down = Total()
    groups = prunus.group(prunus.trace(model, WORDS))
    assert {g.exact for g in groups} == {exact}
    assert exact or "sum in 'down' adds up values that are not zero" in next(iter(groups)).why


# The rules against the operations


@settings(max_examples=12)
@given(st.sampled_from([v for v in EVERY if v[0] != "relu"]), st.integers(0, 99))
def test_a_unit_is_where_the_axes_say_and_nowhere_else(variant: tuple[str, str], seed: int) -> None:
    """With its rows at zero it is zero in exactly those results; with its columns drawn anew, nothing changes."""
    model = made(*variant)
    graph = prunus.trace(model, WORDS)
    groups = prunus.group(graph).skip("up")
    group = list(groups)[seed % len(groups)]
    unit = seed % group.size
    program = graph.eval.program
    (node,) = (n for n in program.nodes if n.module == "rnn" and n.op.endswith(".input"))
    axis = graph.eval.inferred.axes[node.name][0][-1]
    with torch.no_grad():
        for member in group.members:
            if member.state.startswith("rnn.") and not member.consumer:
                tensor = model.get_parameter(member.state)
                tensor.index_fill_(member.dim, groups.index(group, member)[unit], 0)
        y = model.rnn(model.up(WORDS))[0]
        dead = (y == 0).flatten(0, 1).all(0).nonzero().flatten().tolist()
        assert dead == positions(axis).get(group.leaf, torch.empty(group.size, 0))[unit].tolist()
        for name, tensor in model.rnn.named_parameters():
            for member in group.members:
                square = "_hh_" in name and not model.rnn.proj_size
                if f"rnn.{name}" == member.state and (member.consumer or (square and member.dim == 1)):
                    tensor.index_fill_(1, groups.index(group, member)[unit], 9.0)
        torch.testing.assert_close(model.rnn(model.up(WORDS))[0], y)


def test_layers_that_read_packed_sequences_stay_as_they_are() -> None:
    class Packed(Net):
        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(self.up(x), torch.tensor([5, 3, 2]), batch_first=True)
            return self.down(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])

    graph = prunus.trace(Packed(nn.LSTM(8, 6)), WORDS)
    assert graph.fixed["rnn.weight_hh_l0[0]"] == "aten.lstm.data has no rule"
    assert "_pack_padded_sequence" in graph.depends


# Costs, zeros of others, files


def test_macs_are_those_of_a_count_by_hand() -> None:
    """3 samples of 5 steps; each direction of each layer: gates * hidden * (inputs + hidden)."""
    cases = {
        ("lstm", "plain"): 4 * 6 * (8 + 6),
        ("gru", "two layers"): 3 * 6 * (8 + 6) + 3 * 6 * (6 + 6),
        ("tanh", "two layers, both ways, batch first"): 2 * 6 * (8 + 6) + 2 * 6 * (12 + 6),
        ("lstm", "projected"): 4 * 6 * (8 + 4) + 4 * 6,
    }
    for (kind, form), layers in cases.items():
        model = made(kind, form)
        small, plan = halved(model, WORDS)
        linear = 4 * 8 + 3 * model.down.in_features
        assert plan.costs["macs"] == (15 * (layers + linear), macs(small, Inputs.of(WORDS)))
        assert macs(model, Inputs.of(WORDS)) == 15 * (layers + linear)
    cell = Steps(nn.GRUCell(8, 6))
    assert halved(cell, WORDS)[1].costs["macs"][0] == 15 * (4 * 8 + 3 * 6 * (8 + 6)) + 3 * 6 * 3


def test_each_weight_of_a_recurrent_layer_is_multiplied_once_a_step() -> None:
    model = made("gru", "two layers, both ways, batch first")
    groups = prunus.group(prunus.trace(model, WORDS), pattern=prunus.Element())
    plan = prunus.allocate(
        groups, prunus.score(model, groups, prunus.criteria.random), prunus.Budget("macs", at_most=0.5)
    )
    weights = sum(int(mask.sum()) for mask in plan.keep.values())
    assert plan.costs["macs"] == (macs(model, Inputs.of(WORDS)), 15 * weights)


@settings(max_examples=25)
@given(st.sampled_from(EVERY), st.integers(0, 999))
def test_what_is_called_dead_in_a_recurrent_layer_can_go(variant: tuple[str, str], seed: int) -> None:
    """Rows or columns of the weights of some units are zero: what a plan of zeros removes moves no result."""
    model, random = made(*variant), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            for dim in range(tensor.ndim):
                gone = torch.rand(tensor.shape[dim], generator=random) < (0.3, 0.8, 1.0)[seed % 3]
                gone[0] = dim == 0 and seed % 5 == 0
                tensor.index_fill_(dim, gone.nonzero().flatten(), 0)
    groups = prunus.group(prunus.trace(model, WORDS))
    try:
        small = prunus.shrink(model, prunus.plan_from_zeros(model, groups, constants=False), verify=False)
    except PlanError:  # all of a group is dead, or a projection would be as wide as what it projects
        return
    assert_same(model, small.eval(), WORDS)


def test_units_whose_rows_are_zero_are_dead_in_every_layer() -> None:
    model = made("lstm", "two layers, both ways, batch first")
    groups = prunus.group(prunus.trace(model, WORDS))
    with torch.no_grad():
        for group in groups:
            for member in group.producers:
                model.get_parameter(member.state).index_fill_(member.dim, groups.index(group, member)[2:4].flatten(), 0)
    plan = prunus.plan_from_zeros(model, groups)
    assert {int((~mask).sum()) for mask in plan.keep.values()} == {2}
    assert all(not mask[2:4].any() for mask in plan.keep.values())


@pytest.mark.parametrize("too", [False, True])
def test_a_unit_whose_rows_are_zero_is_dead_only_if_its_learned_first_state_is_zero_too(too: bool) -> None:
    model = Learned(lambda self: self.start.expand(-1, 5, -1))
    groups = prunus.group(prunus.trace(model, WORDS))
    (group,) = groups
    with torch.no_grad():
        for member in group.producers:
            if too or member.state != "start":
                model.get_parameter(member.state).index_fill_(member.dim, groups.index(group, member)[2], 0)
    plan = prunus.plan_from_zeros(model, groups)
    assert [name for name, mask in plan.keep.items() if not mask.all()] == [group.name] * too
    assert not too or plan.keep[group.name].tolist() == [True, True, False, True, True, True]


SAVED: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: Net(many(batch_first=True)),
    "a cell": lambda: Steps(nn.GRUCell(8, 6)),
    "relu": lambda: Net(KINDS["relu"](8, 6, batch_first=True)),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_smaller_recurrent_net_is_saved_loaded_and_exported(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make = SAVED[name]
    result = prunus.prune(make(), WORDS, budget=HALF, scope="layer")
    prunus.save(result, tmp_path)
    small = result.model.eval()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in make().parameters()) / 2
    for loaded in (prunus.load(tmp_path), prunus.load(tmp_path, make)):
        for words in (WORDS, WORDS[:2]):  # the first state has as many rows as the batch
            assert torch.equal(loaded(words), small(words))
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert prunus.export(small, WORDS, tmp_path / "small.onnx").path.stat().st_size > 0


def test_a_smaller_recurrent_net_trains_in_the_weights_it_has() -> None:
    """Of a copy, too: the layer holds its weights in a list of its own."""
    small, _ = halved(made("gru", "two layers"), WORDS)
    for model in (small.train(), copy.deepcopy(small)):
        before = model.rnn.weight_hh_l1.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        first = model(WORDS).square().mean()
        first.backward()
        optimizer.step()
        assert not torch.equal(before, model.rnn.weight_hh_l1)
        assert all(a is b for a, b in zip(model.rnn._flat_weights, model.rnn.parameters(), strict=True))
        assert model(WORDS).square().mean() != first
