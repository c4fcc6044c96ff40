"""`prunus run digits-sparse`: nine of ten weights become zero while the network trains, beside what that must beat.

Rows: the dense network; a random choice of weights and one shot by magnitude, both at the same density with the same
training; the gradually pruned network before and after recovery. Zeros make no dense runtime faster: the latency
column says so.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from prunus import criteria, schedules
from prunus.apply.gradual import Gradual
from prunus.apply.mask import mask
from prunus.criteria import Criterion
from prunus.graph.group import group
from prunus.graph.groups import Groups
from prunus.graph.trace import trace
from prunus.patterns import Element
from prunus.plan import Plan
from prunus.recover import adamw
from prunus.result import compare
from prunus.running import end, unfinished
from prunus.save import save
from prunus.schedules import Schedule
from prunus.tasks import digits
from prunus.tasks.rows import DENSE, PRUNED, Demo, example, one_thread, rows_of
from prunus.types import Budget, Progress, renamed

DENSITY = 0.1
EPOCHS = 40
GRADUAL_EPOCHS = 15
RECOVER_EPOCHS = 25
LR = 2e-3
METRICS = ("nonzeros", "effective_macs", "bytes", "compressed_bytes", "latency_ms")


def run(seed: int = 0, directory: str | Path | None = None, progress: Progress | None = None) -> Demo:
    """Run the whole demonstration for one seed; the pruned model is saved to `directory`, where given."""
    with one_thread():
        return _run(seed, directory, progress)


def _run(seed: int, directory: str | Path | None, progress: Progress | None) -> Demo:
    kept = None if directory is None else unfinished(directory)
    dense = digits.digits_cnn(seed=seed)
    named = renamed("train the dense network", progress)
    digits.train(dense, epochs=EPOCHS, seed=seed, run_dir=kept, progress=named)
    groups = group(trace(dense, example()), pattern=Element())
    chance, _ = _pruned(dense, groups, criteria.random, schedules.constant, seed, "prune at random", kept, progress)
    shot, _ = _pruned(dense, groups, criteria.magnitude, schedules.constant, seed, "prune in one shot", kept, progress)
    grown, plan = _grown(dense, groups, criteria.magnitude, schedules.cubic, seed, "prune", progress)
    recovered = _recovered(deepcopy(grown), plan, seed, "prune", kept, progress)
    models = {
        DENSE: dense,
        "random zeros, recovered": chance,
        "one shot, recovered": shot,
        "pruned, not recovered": grown,
        PRUNED: recovered,
    }
    result = compare(dense, recovered, plan, evaluate=digits.correct)
    done = Demo(rows_of(models, METRICS, progress), result)
    if directory is not None:
        save(result, directory, rows=done.rows, command=f"prunus run digits-sparse --seed {seed}")
        end(directory)
    return done


def _pruned(
    dense: nn.Module,
    groups: Groups,
    criterion: Criterion,
    schedule: Schedule,
    seed: int,
    what: str,
    kept: Path | None,
    progress: Progress | None,
) -> tuple[nn.Module, Plan]:
    grown, plan = _grown(dense, groups, criterion, schedule, seed, what, progress)
    return _recovered(grown, plan, seed, what, kept, progress), plan


def _grown(
    dense: nn.Module,
    groups: Groups,
    criterion: Criterion,
    schedule: Schedule,
    seed: int,
    what: str,
    progress: Progress | None,
) -> tuple[nn.Module, Plan]:
    """A copy that loses its weights along the schedule, over `GRADUAL_EPOCHS` of training."""
    net = deepcopy(dense)
    steps = GRADUAL_EPOCHS * len(digits.batches())
    budget = Budget("units", at_most=DENSITY)
    scope = "layer" if criterion is criteria.random else "global"
    gradual = Gradual(groups, criterion, budget, schedule=schedule, steps=steps, every=10, scope=scope, seed=seed)

    def attached(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        optimizer = adamw(parameters, lr)
        gradual.attach(net, optimizer)
        return optimizer

    named = renamed(f"{what}: zeros grow", progress)  # no epoch before the last has all zeros: none is chosen as best
    digits.train(net, epochs=GRADUAL_EPOCHS, lr=LR, optimizer=attached, evaluate=None, seed=seed + 1, progress=named)
    how = {"criterion": f"{criterion.__module__}.{criterion.__qualname__}", "seed": seed, "steps": steps}
    return net, replace(gradual.plan, provenance={**gradual.plan.provenance, **how})


def _recovered(
    net: nn.Module, plan: Plan, seed: int, what: str, kept: Path | None, progress: Progress | None
) -> nn.Module:
    with mask(net, plan):
        named = renamed(f"{what}: recover", progress)
        return digits.train(net, epochs=RECOVER_EPOCHS, lr=LR, seed=seed + 2, run_dir=kept, progress=named)
