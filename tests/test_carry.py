"""`carry`: training goes on with the smaller model as it would have with the dead units held at zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from units import random_plan

import prunus
from prunus import Plan
from prunus.errors import PlanError

BEFORE, AFTER = 6, 8
Make = Callable[[Iterable[Any]], Optimizer]
Schedule = Callable[[Optimizer], Any]
smaller = partial(prunus.shrink, verify=False)


class Residual(nn.Module):
    """Convolutions with batch norms, around which the trunk runs on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.up, self.norm, self.down = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x)).relu()
        x = x + self.down(F.gelu(self.norm(self.up(x))))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """A decoder that is the encoder turned."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.encode, self.last = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(6, 3)
        self.decode = nn.Linear(6, 8, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        code = self.encode(self.hidden(x).tanh()).relu()
        return self.last(F.linear(code, self.decode.weight.t()))


class Wrapped(nn.Module):
    """A class that cannot be cut, for its sizes are written in its code: the smaller model is a GraphModel."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x).view(-1, 2, 3).flatten(1)).relu().view(len(x), 6))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (4, 2, 4, 4)),
    "tied": (Tied, (4, 4)),
    "graph": (Wrapped, (4, 4)),
}
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True, weight_decay=0.01),
    "rmsprop": lambda p: RMSprop(p, lr=0.002, momentum=0.5, centered=True, eps=1e-4),
}
SCHEDULES: dict[str, Schedule] = {
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=BEFORE + AFTER),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=BEFORE + AFTER),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = NETS[name]
    return make().double(), torch.randn(shape, dtype=torch.float64)


def half(model: nn.Module, inputs: Tensor) -> Plan:
    """Half of the units of each exact group, the first ones among them."""
    groups = prunus.group(prunus.trace(model, inputs)).only(exact=True)
    return Plan(groups, {g.name: torch.arange(g.size) % 2 == 1 for g in groups})


def train(model: nn.Module, optimizer: Optimizer, shape: torch.Size, steps: range, *after: Callable[[], Any]) -> None:
    """The batch of a step depends on its number alone."""
    model.train()
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(shape, dtype=torch.float64, generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()
        for act in after:
            act()


def assert_close(a: nn.Module, b: nn.Module) -> None:
    mine, theirs = a.state_dict(), b.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def run(net: str, make: Make, schedule: Schedule | None = None, *, cut: bool) -> tuple[nn.Module, nn.Module]:
    """The model and its moving average after all steps; from step `BEFORE` on cut, or masked and cut at the end."""
    model, inputs = network(net)
    plan = half(model, inputs)
    optimizer = make(model.parameters())
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    turn = [schedule(optimizer).step] if schedule else []
    train(model, optimizer, inputs.shape, range(BEFORE), lambda: ema.update_parameters(model), *turn)
    if cut:
        small = smaller(model, plan)
        prunus.carry(optimizer, model, small, plan)
        ema.module, model = smaller(ema.module, plan), small
    else:
        prunus.mask(model, plan, optimizer)
        prunus.mask(ema.module, plan)
    rest = range(BEFORE, BEFORE + AFTER)
    train(model, optimizer, inputs.shape, rest, lambda: ema.update_parameters(model), *turn)
    return (model, ema.module) if cut else (smaller(model, plan), smaller(ema.module, plan))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_as_with_a_mask(net: str, optimizer: str) -> None:
    (cut, ema), (held, held_ema) = (run(net, OPTIMIZERS[optimizer], cut=cut) for cut in (True, False))
    assert_close(cut, held)
    assert_close(ema, held_ema)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_learning_rate_goes_on_along_its_schedule(optimizer: str, schedule: str) -> None:
    cut, held = (run("residual", OPTIMIZERS[optimizer], SCHEDULES[schedule], cut=cut)[0] for cut in (True, False))
    assert_close(cut, held)


def test_the_networks_are_what_they_are_called() -> None:
    for name in NETS:
        model, inputs = network(name)
        small = prunus.shrink(model, half(model, inputs))
        assert isinstance(small, prunus.GraphModel) == (name == "graph")
        assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())


def test_shrinking_and_carrying_twice_is_doing_it_once() -> None:
    found = []
    for twice in (False, True):
        model, inputs = network("residual")
        plan = random_plan(prunus.group(prunus.trace(model, inputs)), 1)
        following = random_plan(plan.groups.at(plan), 2)
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        train(model, optimizer, inputs.shape, range(BEFORE))
        for each in (plan, following) if twice else (plan.then(following),):
            small = prunus.shrink(model, each, verify=False)
            prunus.carry(optimizer, model, small, each)
            model = small
        train(model, optimizer, inputs.shape, range(BEFORE, BEFORE + AFTER))
        found.append(model)
    assert_close(*found)


def test_parameter_groups_keep_their_settings_and_order() -> None:
    model, inputs = network("residual")
    plan, named = half(model, inputs), dict(model.named_parameters())
    weights = [n for n, p in reversed(named.items()) if p.ndim > 1]
    others = [n for n in named if n not in weights]
    parts = [{"params": [named[n] for n in weights], "lr": 0.3}, {"params": [named[n] for n in others], "momentum": 0}]
    optimizer = SGD(parts, lr=0.1, momentum=0.9)
    train(model, optimizer, inputs.shape, range(2))
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    small = prunus.shrink(model, plan)
    prunus.carry(optimizer, model, small, plan)
    after = {id(p): name for name, p in small.named_parameters()}
    assert [[after[id(p)] for p in g["params"]] for g in optimizer.param_groups] == [weights, others]
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == settings
    assert all(p.grad is None for p in small.parameters())


def test_the_state_is_cut_and_copied_and_its_layout_kept() -> None:
    model, inputs = network("residual")
    plan, model = half(model, inputs), model.to(memory_format=torch.channels_last)
    optimizer = AdamW(model.parameters())
    train(model, optimizer, inputs.shape, range(2))
    moment, other = (optimizer.state[p]["exp_avg"] for p in (model.up.weight, model.head.bias))
    small = prunus.shrink(model, plan)
    prunus.carry(optimizer, model, small, plan)
    found = optimizer.state[small.up.weight]["exp_avg"]
    rows, columns = plan.keep["up"], plan.keep["stem"] if "stem" in plan.keep else torch.ones(6, dtype=torch.bool)
    assert torch.equal(found, moment[rows][:, columns])
    assert found.is_contiguous(memory_format=torch.channels_last)
    kept = optimizer.state[small.head.bias]["exp_avg"]
    assert torch.equal(kept, other)
    assert kept.data_ptr() != other.data_ptr()
    assert optimizer.state.keys() == set(small.parameters())
    assert int(optimizer.state[small.up.weight]["step"]) == 2


def test_an_optimizer_that_has_not_stepped_has_no_state_to_cut() -> None:
    model, inputs = network("tied")
    plan = half(model, inputs)
    optimizer, small = AdamW(model.parameters()), prunus.shrink(model, plan)
    prunus.carry(optimizer, model, small, plan)
    assert not optimizer.state
    assert optimizer.param_groups[0]["params"] == list(small.parameters())


def test_a_carried_optimizer_is_saved_and_loaded_as_any() -> None:
    model, inputs = network("residual")
    plan, optimizer = half(model, inputs), OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer, inputs.shape, range(BEFORE))
    small = prunus.shrink(model, plan)
    prunus.carry(optimizer, model, small, plan)
    again = copy.deepcopy(small)
    other = OPTIMIZERS["adamw"](again.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((small, optimizer), (again, other)):
        train(each, its, inputs.shape, range(BEFORE, BEFORE + AFTER))
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in small.state_dict().items())


# errors


def test_a_parameter_of_another_model_is_refused() -> None:
    model, inputs = network("residual")
    plan = half(model, inputs)
    optimizer = SGD([*model.parameters(), nn.Parameter(torch.zeros(5, 7))], lr=0.1)
    with pytest.raises(PlanError, match=r"parameter of shape \(5, 7\) that is none of the model's.*Pass the model"):
        prunus.carry(optimizer, model, prunus.shrink(model, plan), plan)


def test_state_of_another_shape_is_refused_and_nothing_is_changed() -> None:
    model, inputs = network("residual")
    plan, optimizer = half(model, inputs), torch.optim.Adafactor(model.parameters())
    train(model, optimizer, inputs.shape, range(1))
    state = dict(optimizer.state)
    with pytest.raises(PlanError, match=r"keeps 'row_var' of shape .* for 'stem.weight'.*Make a new optimizer"):
        prunus.carry(optimizer, model, prunus.shrink(model, plan), plan)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    assert optimizer.state == state


@pytest.mark.parametrize("wrong", ["the whole model", "another model"])
def test_a_model_that_this_plan_does_not_make_is_refused(wrong: str) -> None:
    model, inputs = network("residual")
    plan, optimizer = half(model, inputs), SGD(model.parameters(), lr=0.1)
    small = copy.deepcopy(model) if wrong == "the whole model" else nn.Linear(2, 2)
    with pytest.raises(PlanError, match=r"The smaller model has '.*' of shape .*, but the plan leaves .*shrink\("):
        prunus.carry(optimizer, model, small, plan)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
