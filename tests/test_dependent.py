"""Models whose path depends on values: what is before it is proven by the graph, what is beyond by zeroed modules."""

from __future__ import annotations

import functools
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from halves import IMAGE, VECTOR, L, Net, S, assert_same, draw, halve
from torch import Tensor, nn

import prunus
from prunus.apply.dependent import start_error
from prunus.apply.verify import verify
from prunus.errors import ProofError
from prunus.graph.dependent import value_read
from prunus.graph.trace import trace


def branch(self: Any, x: Tensor) -> Tensor:
    y = self.a(x).relu()
    return self.o(y) if y.sum() > 0 else self.o(-y)


def item(self: Any, x: Tensor) -> Tensor:
    y = self.a(x).relu()
    return self.o(y) * int((y > 0.5).sum().item())


def chosen(self: Any, x: Tensor) -> Tensor:
    y = self.a(x).relu()
    return self.o(self.b(y[y.sum(1) > y.sum() / 9]).relu())


def places(self: Any, x: Tensor) -> Tensor:
    y = self.a(x).relu()
    return self.o(self.b(y[torch.where(y.sum(1) > 0)[0]]).relu())


PATHS = {"a branch": branch, "an item": item, "a mask": chosen, "places": places}


def net(path: str) -> Net:
    torch.manual_seed(0)
    if path in ("a mask", "places"):
        return Net(PATHS[path], a=L(8, 12), b=L(12, 6), o=L(6, 3))
    return Net(PATHS[path], a=L(8, 12), o=L(12, 3))


@pytest.mark.parametrize("path", PATHS)
def test_the_class_is_cut_and_computes_what_zeroing_does(path: str) -> None:
    half = halve(net(path), VECTOR)
    assert "in module '(root)' reads values" in half.groups.graph.depends
    assert type(half.small) is Net
    assert half.small.a.out_features == 6
    for seed in range(4):
        torch.manual_seed(seed)
        assert_same(half.zeroed, half.small, torch.randn(5, 8))


def test_groups_beyond_the_read_are_cut_too() -> None:
    half = halve(net("a mask"), VECTOR)
    assert {g.name: int(half.plan.keep[g.name].sum()) for g in half.groups} == {"a": 6, "b": 3}
    assert (half.small.b.in_features, half.small.b.out_features, half.small.o.in_features) == (6, 3, 3)


def test_numbers_read_by_other_means_are_seen() -> None:
    """`torch.tensor` of computed values reads them behind the back of every operation."""

    def run(self: Any, x: Tensor) -> Tensor:
        h = self.n(self.a(x).relu())
        return self.o(h) + torch.tensor([h.sum(), h.square().sum(), h.mean()])

    graph = trace(Net(run, a=L(8, 12), n=nn.LayerNorm(12), o=L(12, 3)), VECTOR)
    assert graph.depends
    constants = {n.name for n in graph.eval.program.nodes if n.op == "constant"}
    assert not any(ref.name in constants for n in graph.eval.proven.nodes for ref in n.refs())


def test_lengths_read_by_other_means_are_seen() -> None:
    def run(self: Any, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        padded = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0]
        return self.o(self.a(padded).relu().sum(1) / padded.shape[1])

    graph = trace(Net(run, a=L(16, 12), o=L(12, 3)), (draw(2, 5, 16), torch.tensor([3, 4])))
    assert "_pack_padded_sequence" in graph.depends or "aten.item" in graph.depends


def test_what_a_path_not_taken_reads_stays() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        if x.sum() > 1000:
            return self.o(self.b(h))
        return self.o(h.relu())

    graph = trace(Net(run, a=L(8, 12), b=L(12, 12), o=L(12, 3)), VECTOR)
    assert graph.fixed["a.weight[0]"] == "a path that these inputs do not take may read it"


def test_what_constants_alone_make_is_no_read() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        times = torch.tensor(x.shape).max().item()
        return self.o(self.a(x).relu() * times)

    graph = trace(Net(run, a=L(8, 6), o=L(6, 3)), VECTOR)
    assert not graph.depends


def test_a_wrong_unit_beyond_the_read_is_seen() -> None:
    half = halve(net("a mask"), VECTOR)
    with torch.no_grad():
        half.small.o.weight.copy_(half.small.o.weight.flip(1))
    with pytest.raises(ProofError, match=r"'o\.weight' of the smaller model is not what the plan cuts it to"):
        verify(half.model, half.small, half.plan)


def test_a_module_that_goes_on_differently_is_seen() -> None:
    half = halve(net("a mask"), VECTOR)
    half.small.run = lambda self, x: 2 * chosen(self, x)
    with pytest.raises(ProofError, match="Check 'zeroed' failed"):
        verify(half.model, half.small, half.plan)


def test_a_module_that_starts_differently_is_seen() -> None:
    half = halve(net("a mask"), VECTOR)
    half.small.run = lambda self, x: chosen(self, 2 * x)
    assert start_error(half.small, half.plan) == float("inf")  # another operation
    half.small.run = chosen
    half.small.a.bias.data += 1
    assert start_error(half.small, half.plan) < 1e-6  # state is held to the plan by a check of its own


def test_an_inexact_group_before_the_read_is_proven_there() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        y = self.o(self.n(self.a(x)))
        return y[y.sum(1) > -100]

    half = halve(Net(run, a=L(8, 12), n=nn.LayerNorm(12), o=L(12, 3)), VECTOR)
    (only,) = half.groups
    assert not only.exact
    assert half.small.n.normalized_shape == (6,)


def test_an_inexact_group_beyond_the_read_is_refused() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        return self.o(self.n(self.a(x[x.sum(1) > -100])))

    model = Net(run, a=L(8, 12), n=nn.LayerNorm(12), o=L(12, 3))
    with pytest.raises(ProofError, match=r"'a' is inexact .* skip='a'"):
        halve(model, VECTOR)


def test_a_size_computed_beyond_reach_is_refused() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        y = self.a(x).unflatten(1, (2, 6)).transpose(1, 2).flatten(1)
        return self.o(y)[y.sum(1) > 0]

    with pytest.raises(ProofError, match=r"the graph cannot take its place\. .* skip="):
        halve(Net(run, a=L(8, 12), o=L(12, 3)), VECTOR)


def test_the_graph_says_where_values_are_read() -> None:
    graph = trace(net("an item"), VECTOR)
    read = value_read(graph.eval.program)
    assert read is not None
    assert read.op == "aten.item.default"
    assert "the path depends on values: aten.item.default" in str(graph)
    assert "(test_dependent.py:" in str(graph)
    assert [n.op for n in graph.eval.proven.nodes][-1] != "aten.item.default"
    assert graph.train is None


class Cached(nn.Module):
    """A table made once for each length, as models of images do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = L(8, 6), L(6, 3)

    @staticmethod
    @functools.lru_cache(maxsize=4)
    def table(length: int) -> Tensor:
        return torch.linspace(0.5, 1.5, length)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.a(x).relu() * self.table(len(x))[:, None])


def test_a_saved_model_needs_its_class(tmp_path: Path) -> None:
    model = net("a mask")
    result = prunus.prune(model, VECTOR, budget=prunus.Budget("units", at_most=0.5))
    prunus.save(result, tmp_path)
    assert_same(result.model, prunus.load(tmp_path, lambda: net("a mask")), draw(5, 8))
    with pytest.raises(prunus.errors.ArtifactError, match=r"depends on values.*make_model"):
        prunus.load(tmp_path)


def test_a_function_cache_of_the_model_holds_no_tensor_of_the_trace() -> None:
    model = Cached()
    expected = model(draw(3, 8))
    half = halve(model, VECTOR)
    assert type(Cached.table(2)) is Tensor
    assert torch.equal(model(draw(3, 8)), expected)
    assert_same(half.zeroed, half.small, VECTOR)
    assert_same(half.zeroed, half.small, draw(5, 8))


def test_tracing_on_values_leaves_the_model_and_the_inputs_alone() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        x.add_(1)
        y = F.relu(self.n(self.a(x)))
        return self.o(y[:, :, int(y.sum()) % 2])

    model = Net(run, a=nn.Conv2d(3, 6, 1), n=nn.BatchNorm2d(6), o=L(8, 2)).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    images = IMAGE.clone()
    assert trace(model, images).depends
    assert model.training
    assert torch.equal(images, IMAGE)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    gc.collect()


def test_a_number_read_from_a_tensor_that_shapes_no_result_is_followed() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.o(y) * y.sum(1).argsort().tolist()[0]

    half = halve(Net(run, a=L(8, 12), o=L(12, 3)), VECTOR)
    assert not half.groups.graph.depends
    for seed in range(4):
        torch.manual_seed(seed)
        assert_same(half.zeroed, half.small, torch.randn(2, 8))


def test_a_group_beyond_the_read_that_moves_nothing_is_not_witnessed() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        chosen = y[y.sum(1) > 0]
        return self.o(chosen) + 0 * self.p(self.b(chosen))

    model = Net(run, a=L(8, 12), b=L(12, 6), o=L(12, 3), p=L(6, 3))
    assert halve(model, VECTOR).proof.unwitnessed == ("b",)


def test_a_result_chosen_by_other_means_is_seen() -> None:
    """Both are computed in every call; which of them is the result, no operation tells."""

    def run(self: Any, x: Tensor) -> Tensor:
        y, z = self.o(self.a(x)), self.p(self.a(x))
        return y if torch.tensor([x.sum(), 1.0]).tolist()[0] > float(VECTOR.sum()) + 0.1 else z

    graph = trace(Net(run, a=L(8, 12), o=L(12, 3), p=L(12, 3)), VECTOR)
    assert graph.depends


def test_a_precision_that_is_none_is_refused() -> None:
    half = halve(S(L(8, 6), nn.ReLU(), L(6, 3)), VECTOR)
    with pytest.raises(prunus.errors.PlanError, match=r"'fast' is no precision of a proof; expected \"native\""):
        prunus.shrink(half.model, half.plan, verify="fast")
    proof = verify(half.model, half.small, half.plan, precision="native")
    assert (proof.precision, proof.accepted["redrawn"]) == ("float32", 1e-4)
    assert half.proof.precision == "float64"
