"""The check of `benchmarks/coverage.py` calls right models right and each kind of wrong model wrong."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from covered.judge import CRASHED, GIVEN, NOTHING, RIGHT, WRONG, judge
from covered.kept import Unlike, read_kept, redraw, slices_of, state


class Normed(nn.Module):
    """A trunk of sixteen channels under a statistic, and an inner layer of six."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 16)
        self.norm = norm
        self.wide = nn.Linear(16, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.norm(self.inner(x))).relu())


class ByHand(nn.Module):
    """A layer norm written out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))
        self.bias = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        off = x - x.mean(-1, keepdim=True)
        return self.weight * off / (off.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() + self.bias


class Placed(Normed):
    """Positions kept as a plain attribute, neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(16))
        self.places = torch.randn(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.norm(self.inner(x) + self.places)).relu())


def cnn() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(6 * 16, 4))


SEED = torch.Generator().manual_seed(0)
PIXELS, ROWS = torch.randn(2, 3, 8, 8, generator=SEED), torch.randn(4, 5, generator=SEED)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "cnn": (cnn, PIXELS, RIGHT),
    "batch norm": (lambda: Normed(nn.BatchNorm1d(16)), ROWS, RIGHT),
    "layer norm": (lambda: Normed(nn.LayerNorm(16)), ROWS, GIVEN),
    "rms norm": (lambda: Normed(nn.RMSNorm(16)), ROWS, GIVEN),
    "group norm": (lambda: Normed(nn.GroupNorm(2, 16)), ROWS, GIVEN),
    "plain attribute": (Placed, ROWS, GIVEN),
    "by hand": (lambda: Normed(ByHand()), ROWS, GIVEN),
}


def made(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model, its half, and a call."""
    make, call, _ = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    redraw(model)
    groups = prunus.group(prunus.trace(model, call))
    scores = prunus.score(model, groups, prunus.criteria.magnitude)
    plan = prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.5), scope="layer")
    return model, prunus.shrink(model, plan), call


@pytest.mark.parametrize("name", MODELS)
def test_a_right_model_is_called_right(name: str) -> None:
    model, small, call = made(name)
    verdict = judge(model, small, [call, call + 1])
    assert verdict.verdict == MODELS[name][2], verdict
    assert verdict.error is not None
    assert verdict.error < 1e-12
    assert verdict.control is not None
    assert verdict.control > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_an_index_that_is_one_off_in_one_tensor_is_wrong(name: str) -> None:
    model, small, call = made(name)
    seen = 0
    for state_name, kept in read_kept(model, small).items():
        for dim, index in enumerate(kept):
            whole = state(model)[state_name]
            free = sorted(set(range(whole.shape[dim])) - set(index.tolist()))
            if not free:
                continue
            wrong, other = copy.deepcopy(small), index.clone()
            other[-1] = free[0]
            taken = whole.detach()
            for d, i in enumerate(other if d == dim else k for d, k in enumerate(kept)):
                taken = taken.index_select(d, i)
            state(wrong)[state_name].data.copy_(taken)
            assert judge(model, wrong, [call]).verdict == WRONG, (state_name, dim)
            seen += 1
    assert seen >= 6


def test_a_value_of_its_own_is_wrong() -> None:
    model, small, call = made("cnn")
    with torch.no_grad():
        state(small)["0.weight"][1, 1, 1, 1] += 1e-3
    assert judge(model, small, [call]) == judge(model, small, [call])
    assert "0.weight" in judge(model, small, [call]).why


class Counted(nn.Module):
    """A norm over so many channels, those that are not there taken as zero."""

    def __init__(self, norm: nn.Module, size: int) -> None:
        super().__init__()
        self.kind, self.size = type(norm), size
        self.weight = norm.weight
        self.bias = getattr(norm, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        more = (0, self.size - x.shape[-1])
        wide = {name: F.pad(t, more) for name, t in self.named_parameters()}
        if self.kind is nn.GroupNorm:
            return F.group_norm(F.pad(x, more), 2, **wide)[..., : x.shape[-1]]
        norm = F.layer_norm if self.kind is nn.LayerNorm else F.rms_norm
        return norm(F.pad(x, more), (self.size,), eps=1e-5, **wide)[..., : x.shape[-1]]


@pytest.mark.parametrize("name", ["layer norm", "rms norm", "group norm"])
def test_a_statistic_over_another_count_is_wrong(name: str) -> None:
    model, small, call = made(name)
    small.norm = Counted(small.norm, 12)
    assert judge(model, small, [call]).verdict == WRONG


def test_a_statistic_over_the_old_count_is_the_zeroed_original() -> None:
    model, small, call = made("layer norm")
    small.norm = Counted(small.norm, 16)
    assert judge(model, small, [call]).verdict == RIGHT


def test_another_epsilon_is_wrong() -> None:
    model, small, call = made("layer norm")
    small.norm.eps = 1e-3
    assert judge(model, small, [call]).verdict == WRONG


def test_a_model_that_lost_a_tie_is_judged_as_two_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    model[2].weight = model[0].weight
    redraw(model)
    small = copy.deepcopy(model)
    small[2].weight = nn.Parameter(model[0].weight[:4].detach().clone())
    small[2].bias = nn.Parameter(model[2].bias[:4].detach().clone())
    small[4].weight = nn.Parameter(model[4].weight[:, :4].detach().clone())
    assert judge(model, small, [torch.randn(3, 6)]).verdict == RIGHT


def test_nothing_removed_is_never_right() -> None:
    model, _, call = made("cnn")
    assert judge(model, copy.deepcopy(model), [call]).verdict == NOTHING


def test_a_model_that_cannot_be_called_has_crashed() -> None:
    model, small, call = made("cnn")
    small.register_forward_pre_hook(lambda _, x: (x[0][:, :2],))
    verdict = judge(model, small, [call])
    assert verdict.verdict == CRASHED
    assert "cannot be called: RuntimeError" in verdict.why


def test_a_comparison_that_sees_nothing_is_not_right() -> None:
    model, small, call = made("cnn")
    for m in (model, small):
        m.register_forward_hook(lambda *_: torch.ones(2))
    verdict = judge(model, small, [call])
    assert verdict.verdict == WRONG
    assert "blind" in verdict.why


def test_slices_are_read_off_values_that_occur_twice() -> None:
    torch.manual_seed(0)
    whole = torch.randint(0, 7, (9, 8, 7)).float()
    index = [torch.tensor([0, 3, 8]), torch.tensor([1, 2, 7]), torch.tensor([0, 4])]
    small = whole[index[0]][:, index[1]][:, :, index[2]]
    found = slices_of("w", whole, small)
    assert torch.equal(whole[found[0]][:, found[1]][:, :, found[2]], small)
    with pytest.raises(Unlike, match="w"):
        slices_of("w", whole, small + 10)


def test_redrawn_vectors_have_no_value_twice() -> None:
    norm = nn.BatchNorm1d(5000)
    redraw(norm)
    assert all(len(t.unique()) == 5000 for name, t in state(norm).items() if t.ndim)
    assert float(norm.running_var.min()) >= 0.5
    assert math.isclose(float(norm.running_mean.mean()), 0, abs_tol=1e-3)
