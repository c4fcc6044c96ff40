"""DDP and FSDP2: both ranks prune alike at every step, whatever data they see, and as one process alone would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from ranks import CASES, STEPS, Case
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

import prunus
from prunus import Budget, Channel, Element, Groups, NofM, criteria, regularize
from prunus.errors import PlanError
from prunus.graph.shards import whole_copy
from prunus.plan import unpack


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, list[Any]]:
    """What each rank found, of every case: two processes run them all."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(Path(ranks.__file__))]
    started = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=400)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    every = {case: [torch.load(folder / f"{n}-{rank}.pt") for rank in (0, 1)] for n, case in enumerate(CASES)}
    return every | {"refused": [(folder / f"refused-{rank}").read_text() for rank in (0, 1)]}


def same(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> bool:
    return all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in zip(a, b, strict=True)
    )


def gone(case: Case, bits: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a plan removes of each weight, told apart from how `mask` does it: whole filters, or by the units' grid."""
    units = {name: unpack(packed, 8 * packed.numel()) for name, packed in bits.items()}
    if case.pattern == Channel():
        weights = {name: ranks.net().get_parameter(f"{name}.weight") for name in units}
        return {
            f"{n}.weight": ~units[n][: len(w)].repeat_interleave(w[0].numel()).view(w.shape) for n, w in weights.items()
        }
    groups = prunus.group(ranks.net(), pattern=case.pattern, skip=["6.*"] if case.pattern in ranks.ODD else ())
    return {name: ~groups[name].grid.spread(kept[: groups[name].size]) for name, kept in units.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_masks_and_weights_of_the_ranks_are_the_same_at_every_step(case: Case, found: Any) -> None:
    first, second = found[case]
    assert first["step"] == second["step"] == STEPS + 2
    assert first["costs"] == second["costs"]
    assert same(first["bits"], second["bits"])
    assert same(first["weights"], second["weights"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_the_plan_removes_is_zero_at_every_step(case: Case, found: Any) -> None:
    for bits, weights in zip(found[case][0]["bits"], found[case][0]["weights"], strict=True):
        for name, removed in gone(case, bits).items():
            zero = weights[name] == 0
            assert torch.equal(zero, removed) if case.pattern != Channel() else zero[removed].all(), name
    least = 0.5 if case.pattern == NofM(1, 2) else 0.3 if case.pattern == Channel() else 0.6
    removed = torch.cat([where.flatten() for where in gone(case, bits).values()])
    assert removed.float().mean() >= least


@pytest.mark.parametrize("case", [case for case in CASES if case.shared], ids=str)
def test_ranks_that_see_the_same_data_do_what_one_process_does(case: Case, found: Any) -> None:
    """The mean of two equal gradients is that gradient: not a bit may differ."""
    alone = ranks.run(case, "alone", rank=0)
    assert same(found[case][0]["bits"], alone["bits"])
    assert same(found[case][0]["weights"], alone["weights"])


@pytest.mark.parametrize("case", ranks.KILLED, ids=str)
def test_a_run_that_was_killed_ends_in_the_same_bits(case: Case, found: Any) -> None:
    straight, again = found[replace(case, killed=None)][0], found[case][0]
    assert same(straight["bits"], again["bits"])
    assert same(straight["weights"], again["weights"])


def test_no_rank_waits_for_one_that_cannot_score(found: Any) -> None:
    assert "CriterionError" in found["refused"][0]
    assert found["refused"][1] == "PlanError: Rank 0 could not score the model; its own error says why."


# one process, in which `fully_shard` does all it does in many


@pytest.fixture
def alone() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Net(nn.Module):
    """Tied weights, a buffer, a plain tensor, a frozen parameter, and a hook of the user's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList([nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)])
        self.parts[2].weight = self.parts[0].weight
        self.parts[2].bias.requires_grad_(False)
        self.scale = torch.tensor(3.0, requires_grad=True) * 1
        self.calls = 0
        self.parts[0].register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.calls += 1

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x * self.scale


def test_the_whole_copy_is_the_model_as_it_was_before_it_was_sharded(alone: None) -> None:
    plain, model, x = Net(), Net(), torch.randn(4, 6)
    fully_shard(model.parts[1])
    fully_shard(model)
    copy = whole_copy(model.eval(), build=True)
    assert [type(m) for m in copy.modules()] == [type(m) for m in plain.modules()]
    assert [vars(m).keys() for m in copy.modules()] == [vars(m).keys() for m in plain.modules()]
    hooks = [{n: len(v) for n, v in vars(m).items() if n.endswith("_hooks")} for m in copy.modules()]
    assert hooks == [{n: len(v) for n, v in vars(m).items() if n.endswith("_hooks")} for m in plain.modules()]
    assert {n: (type(p), p.requires_grad) for n, p in copy.named_parameters()} == {
        n: (type(p), p.requires_grad) for n, p in plain.named_parameters()
    }
    assert copy.parts[2].weight is copy.parts[0].weight
    assert not copy.training
    assert torch.equal(copy(x), plain.eval()(x))
    assert (copy.calls, model.calls) == (1, 0)


def test_what_is_done_to_the_whole_copy_does_not_reach_the_model(alone: None) -> None:
    model, x = Net(), torch.randn(4, 6)
    fully_shard(model)
    before = model.eval()(x)
    copy = whole_copy(model, build=True)
    with torch.no_grad():
        for tensor in (*copy.parameters(), *copy.buffers(), copy.scale):
            tensor.zero_()
    assert torch.equal(model(x), before)
    assert whole_copy(model, build=False) is None


def test_weights_in_pieces_are_not_scored_by_themselves(alone: None) -> None:
    model = nn.Linear(4, 4)
    groups = prunus.group(model, pattern=Element())
    fully_shard(model)
    with pytest.raises(PlanError, match=r"weights of FSDPLinear are in pieces.*Score before it is sharded"):
        prunus.score(model, groups, criteria.magnitude)


WHOLE: dict[str, Callable[[Groups, Groups], Any]] = {
    "Regrow": lambda channels, elements: prunus.Regrow(elements, Budget("units", at_most=0.5), steps=4),
    "l1": lambda channels, elements: regularize.l1(channels),
    "group_lasso": lambda channels, elements: regularize.group_lasso(channels),
    "GReg": lambda channels, elements: regularize.GReg(channels, Budget("units", at_most=0.5)),
    "L0": lambda channels, elements: regularize.L0(channels),
}


@pytest.mark.parametrize("which", WHOLE)
def test_what_needs_whole_weights_says_so(which: str, alone: None) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    graph = prunus.trace(model, torch.ones(2, 4))
    rider = WHOLE[which](prunus.group(graph), prunus.group(graph, pattern=Element()))
    fully_shard(model)
    with pytest.raises(PlanError, match=rf"are in pieces .*and {which} needs whole ones. What works .*Gradual"):
        rider.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_l1_of_single_weights_works_on_pieces(alone: None) -> None:
    model = nn.Linear(4, 4, bias=False)
    push = regularize.l1(prunus.group(model, pattern=Element()), strength=0.5)
    fully_shard(model)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with push.attach(model, optimizer):
        model(torch.zeros(2, 4)).sum().backward()
        optimizer.step()
    assert torch.equal(model.weight.full_tensor(), torch.full((4, 4), 0.75))


def test_zeros_are_set_where_a_forward_has_left_whole_weights(alone: None) -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    groups = prunus.group(model, pattern=Element())
    plan = prunus.allocate(groups, prunus.score(model, groups, criteria.magnitude), Budget("units", at_most=0.5))
    fully_shard(model)
    with torch.no_grad():
        model(x)
        with prunus.mask(model, plan) as masks:
            nn.init.ones_(model.weight)
            model(x)
            assert not hasattr(model.weight, "to_local")
            masks.zero()
    assert int(model.weight.full_tensor().count_nonzero()) == 8
