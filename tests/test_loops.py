"""`Gradual` in loops as people write them: compiled, averaged, scheduled, accumulated, bfloat16, several optimizers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunus
from prunus import Budget, Channel, Element, Gradual, criteria
from prunus.errors import PlanError
from prunus.patterns import Pattern

STEPS = 12
OF_TORCH = "ignore:.*torch.jit.script_method"  # where it compiles its own optimizers
Batch = tuple[Tensor, Tensor]
Step = Callable[[], Any]


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))


def batch(step: int) -> Batch:
    draw = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, generator=draw), torch.randn(8, 4, generator=draw)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


@dataclass(frozen=True)
class Way:
    """One way to write the loop."""

    compiled: bool = False
    step_compiled: bool = False
    averaged: bool = False
    scheduled: bool = False
    parts: int = 1
    accumulate: int = 1
    autocast: bool = False
    pattern: Pattern = field(default_factory=Element)


WAYS = [
    Way(),
    Way(compiled=True),
    Way(step_compiled=True),
    Way(averaged=True),
    Way(scheduled=True),
    Way(parts=3),
    Way(accumulate=3),
    Way(autocast=True),
    Way(pattern=Channel(), compiled=True, averaged=True, scheduled=True, parts=2, accumulate=2, autocast=True),
]


class Run:
    """All that a script holds, and the loop over some of its steps."""

    def __init__(self, way: Way, seed: int, compile_with: str = "eager") -> None:
        self.way, self.inner = way, net(seed)
        layers = [m for m in self.inner if isinstance(m, nn.Linear)]
        parts = [[p for layer in layers[i :: way.parts] for p in layer.parameters()] for i in range(way.parts)]
        self.optimizers: list[Optimizer] = [
            AdamW(parts[0], lr=0.02),
            *(SGD(p, lr=0.1, momentum=0.9) for p in parts[1:]),
        ]
        self.schedulers = [OneCycleLR(o, 0.05, total_steps=99) for o in self.optimizers if way.scheduled]
        self.average = AveragedModel(self.inner, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.model = torch.compile(self.inner, backend=compile_with) if way.compiled else self.inner
        steps: list[Step] = [o.step for o in self.optimizers]
        self.steps = [torch.compile(s, backend=compile_with) for s in steps] if way.step_compiled else steps
        source = prunus.trace(net(0), batch(0)[0]) if way.pattern == Channel() else self.inner
        self.gradual = Gradual(
            prunus.group(source, pattern=way.pattern),
            criteria.taylor,
            Budget("units", at_most=0.3),
            steps=STEPS - 2,
            every=2,
            data=[batch(100)],
            loss=loss,
        )
        self.masks = self.gradual.attach(self.model, *self.optimizers)

    def states(self) -> list[Any]:
        return [self.inner, *self.optimizers, *self.schedulers, self.average, self.gradual]

    def train(self, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            for part in range(self.way.accumulate):
                with torch.autocast("cpu", torch.bfloat16) if self.way.autocast else nullcontext():
                    loss(self.model, batch(10 * step + part)).backward()
            for act in self.steps:
                act()
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            for scheduler in self.schedulers:
                scheduler.step()
            self.average.update_parameters(self.inner)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def zeros(model: nn.Module) -> int:
    return sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, nn.Linear))


@pytest.mark.filterwarnings(OF_TORCH)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_loop_of_any_kind_reaches_the_budget_and_goes_on_to_the_same_bits_when_killed(way: Way) -> None:
    torch.compiler.reset()
    run, file = Run(way, seed=0), io.BytesIO()
    run.train(range(5))
    torch.save([part.state_dict() for part in run.states()], file)
    run.train(range(5, STEPS))
    again = Run(way, seed=1)
    file.seek(0)
    for part, state in zip(again.states(), torch.load(file), strict=True):
        part.load_state_dict(state)
    again.train(range(5, STEPS))
    assert run.gradual.step == again.gradual.step == STEPS
    assert same(weights(again.inner), weights(run.inner))
    assert same(weights(again.average), weights(run.average))
    kept = run.gradual.plan.keep
    assert sum(int(units.sum()) for units in kept.values()) == int(0.3 * sum(units.numel() for units in kept.values()))
    if way.pattern == Element():
        assert zeros(run.inner) == 128 - int(0.3 * 128)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_nothing_is_compiled_anew_when_the_masks_grow(backend: str) -> None:
    torch.compiler.reset()
    run, found = Run(Way(compiled=True), seed=0, compile_with=backend), set()
    run.train(range(1))
    with torch._dynamo.config.patch(error_on_recompile=True):
        counters.clear()
        for step in range(1, STEPS):
            run.train(range(step, step + 1))
            found.add(zeros(run.inner))
    assert len(found) > 4
    assert counters["stats"]["unique_graphs"] == 0


@pytest.mark.filterwarnings(OF_TORCH)
def test_a_compiled_step_of_an_optimizer_is_compiled_once() -> None:
    torch.compiler.reset()
    counters.clear()
    model, x = net(0), batch(0)[0]
    optimizer = AdamW(model.parameters(), lr=torch.tensor(0.02))
    groups = prunus.group(model, pattern=Element())
    gradual = Gradual(groups, criteria.magnitude, Budget("units", at_most=0.3), steps=STEPS, every=1)
    gradual.attach(model, optimizer)
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(STEPS):
        model(x).square().sum().backward()
        step()
    assert counters["stats"]["unique_graphs"] == 1
    assert (gradual.step, zeros(model)) == (STEPS, 128 - int(0.3 * 128))


# averages of weights


def test_an_average_keeps_a_share_of_what_went_until_it_is_zeroed() -> None:
    run = Run(Way(averaged=True), seed=0)
    run.train(range(STEPS))
    before = weights(run.average)
    assert zeros(run.average) < zeros(run.inner)
    run.masks.zero(run.average)
    for average, old, weight in zip(run.average.parameters(), before, run.inner.parameters(), strict=True):
        gone = weight == 0
        assert not average[gone].any()
        assert torch.equal(average[~gone], old[~gone])
    run.train(range(STEPS, STEPS + 3))
    assert zeros(run.average) == zeros(run.inner)  # and it stays zero without being asked


def test_a_copy_is_zeroed_and_left_alone_after() -> None:
    run = Run(Way(), seed=0)
    run.train(range(STEPS))
    copied = copy.deepcopy(run.inner)
    nn.init.ones_(copied[0].weight)
    run.masks.zero(copied)
    assert same(weights(copied)[2:], weights(run.inner)[2:])
    assert torch.equal(copied[0].weight == 0, run.inner[0].weight == 0)
    nn.init.ones_(copied[0].weight)
    run.train(range(STEPS, STEPS + 2))
    assert copied[0].weight.all()


def test_an_average_of_another_model_is_refused() -> None:
    run = Run(Way(), seed=0)
    with pytest.raises(PlanError, match=r"has '0.weight' of shape \(3, 4\).*groups speak of shape \(8, 4\)"):
        run.masks.zero(AveragedModel(nn.Sequential(nn.Linear(4, 3))))
