"""Means that go on dividing by the whole count: what is removed is exactly what zeroing would remove."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import vision  # noqa: F401 (transformers imports torchvision, which needs help beside a CPU build of torch)
from halves import IMAGE, WORDS, Net
from test_from_zeros import doubled
from test_laws import run
from test_zoo import llama
from torch import Tensor, nn
from units import random_plan, zeroed

import prunus
from prunus import Budget, GraphModel, Inputs, Plan, group, load, save, shrink, trace, verify
from prunus.errors import PlanError, TraceError

IDS = torch.arange(10).view(2, 5)


def cut(model: nn.Module, inputs: Tensor, *only: str, seed: int = 0) -> tuple[Plan, nn.Module]:
    """Some units of exact groups go."""
    groups = group(trace(model, inputs, means="whole"), only=only).only(exact=True)
    plan = random_plan(groups, seed)
    small = shrink(model, plan, verify=False)
    assert verify(model, small, plan).errors["zeroed"] < 1e-4
    return plan, small


def assert_zeroing(model: nn.Module, small: nn.Module, plan: Plan, x: Tensor) -> None:
    """`small` computes what the model with zeroed units does, and that is not what counting the kept ones gives."""
    expected = run(zeroed(model, plan), x)
    torch.testing.assert_close(run(small, x), expected, rtol=1e-9, atol=1e-9)


class Squares(nn.Module):
    """A root mean square written out, as in transformers."""

    def __init__(self, size: int, eps: float = 0.1) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(size) + 0.5), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def chain(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 12), norm, nn.Linear(12, 5))


@pytest.mark.parametrize("norm", [Squares(12), nn.RMSNorm(12, eps=0.1)], ids=["written out", "torch"])
def test_a_root_mean_square_over_units_that_went_is_that_of_zeros(norm: nn.Module) -> None:
    model = doubled(chain(norm))
    x = WORDS.double()
    plan, small = cut(model, x)
    assert type(small) is nn.Sequential
    assert_zeroing(model, small, plan, x * 3 + 1)
    kept = group(trace(model, x))
    assert not kept["0"].exact
    other = shrink(model, Plan(kept, plan.keep))
    assert not torch.allclose(run(other, x), run(small, x), rtol=1e-3)


def test_a_plain_mean_over_channels_is_that_of_zeros() -> None:
    net = Net(lambda m, x: m.end((h := m.a(x)) * h.mean(1, keepdim=True)), a=nn.Conv2d(3, 6, 1), end=nn.Conv2d(6, 2, 1))
    model = doubled(net)
    plan, small = cut(model, IMAGE.double())
    assert isinstance(small, GraphModel)  # no number and no weight of this class can say it
    assert_zeroing(model, small, plan, IMAGE.double() * 3 + 1)


def test_two_rounds_divide_by_the_count_of_the_traced_model() -> None:
    for norm in (Squares(12), nn.RMSNorm(12, eps=0.1), None):
        net = Net(
            lambda m, x: m.b(m.a(x).square() + m.a(x).mean(-1, keepdim=True)), a=nn.Linear(16, 12), b=nn.Linear(12, 5)
        )
        model = doubled(chain(norm) if norm else net)
        x = WORDS.double()
        groups = group(trace(model, x, means="whole")).only(exact=True)
        (name,) = (g.name for g in groups)
        first = Plan(groups, {name: torch.arange(12) % 4 > 0})
        second = Plan(groups.at(first), {name: torch.arange(12) % 3 > 0})
        small = shrink(model, first)
        smaller = shrink(small, second)
        assert_zeroing(model, smaller, first.then(second), x)
        torch.testing.assert_close(run(shrink(model, first.then(second)), x), run(smaller, x), rtol=1e-12, atol=1e-12)


def trunk_of_llama() -> tuple[nn.Module, Plan]:
    torch.manual_seed(0)
    model = llama().eval()
    for name, tensor in model.named_parameters():
        if "norm" in name:
            tensor.detach().add_(torch.rand(tensor.shape))
    inputs = Inputs(kwargs={"input_ids": IDS, "use_cache": False})
    groups = group(trace(model, inputs, outputs=["logits"], means="whole"))
    trunk = next(g for g in groups if g.kind == "trunk")
    assert trunk.exact
    assert not group(trace(model, inputs, outputs=["logits"]))[trunk.name].exact
    return model, Plan(groups, {trunk.name: torch.arange(trunk.size) % 4 > 0})


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def test_the_trunk_of_llama_is_removed_as_by_zeroing() -> None:
    model, plan = trunk_of_llama()
    small = shrink(model, plan)
    assert type(small).__name__ == "LlamaForCausalLM"
    assert small.model.norm.variance_epsilon == pytest.approx(model.model.norm.variance_epsilon * 64 / 48)
    expected = logits(zeroed(model, plan), IDS.flip(1))
    torch.testing.assert_close(logits(small, IDS.flip(1)), expected, rtol=1e-4, atol=1e-5)


def test_a_saved_model_comes_back_with_its_eps_and_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = chain(Squares(12))
    groups = group(trace(model, WORDS, means="whole"))
    plan = Plan(groups, {"0": torch.arange(12) % 3 > 0})
    small = shrink(model, plan)
    save(prunus.compare(model, small, plan), tmp_path)
    for again in (load(tmp_path), load(tmp_path, lambda: chain(Squares(12)))):
        torch.testing.assert_close(run(again, WORDS), run(small, WORDS), rtol=1e-6, atol=1e-6)
    with pytest.raises(PlanError, match="another structure"):
        prunus.load_plan(tmp_path, group(trace(model, WORDS)))


def test_prune_counts_such_groups_as_exact_in_every_round() -> None:
    torch.manual_seed(0)
    model = chain(Squares(12))
    result = prunus.prune(model, WORDS, budget=Budget("units", at_most=0.5), rounds=2, means="whole")
    assert result.model[0].out_features == 6
    torch.testing.assert_close(run(result.model, WORDS), run(zeroed(model, result.plan), WORDS), rtol=1e-5, atol=1e-5)


def one_plus(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b((1 + m.scale) * h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 0.1))


def seen(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    mean = h.square().mean(-1, keepdim=True)
    return m.b(m.scale * (h * torch.rsqrt(mean + 0.1))) + mean


def tied(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.scale * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 0.1)) + m.scale)


def by_power(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.scale * (h * (h.square().mean(-1, keepdim=True) + 0.1) ** -0.5))


def returned(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    h = m.a(x)
    mean = h.square().mean(-1, keepdim=True)
    return m.b(m.scale * (h * torch.rsqrt(mean + 0.1))), mean


def otherwise_in_training(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    y = m.scale * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 0.1))
    return m.b(y + m.scale if m.training else y)


@pytest.mark.parametrize("forward", [one_plus, seen, returned, tied, otherwise_in_training, by_power])
def test_what_a_weight_cannot_say_is_left_to_the_graph(forward: Any) -> None:
    parts = {"a": nn.Linear(16, 12), "b": nn.Linear(12, 5), "scale": nn.Parameter(torch.rand(12))}
    model = doubled(Net(forward, **parts))
    plan, small = cut(model, WORDS.double())
    assert not plan.graph.rms_axes
    assert_zeroing(model, small, plan, WORDS.double() * 3 + 1)


def test_a_norm_without_an_eps_of_its_own_counts_what_is_kept() -> None:
    groups = group(trace(chain(nn.RMSNorm(12)), WORDS, means="whole"))
    assert not groups["0"].exact


def test_other_words_are_refused() -> None:
    with pytest.raises(TraceError, match='expected "kept" or "whole"'):
        trace(nn.Linear(4, 2), torch.randn(2, 4), means="zeros")  # type: ignore[arg-type]
