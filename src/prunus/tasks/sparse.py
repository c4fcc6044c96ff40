"""`prunus run digits-sparse`: nine of ten weights become zero while the network trains, beside what that must beat.

Rows: the dense network; a random choice of weights and one shot by magnitude, both at the same density with the same
training; the gradually pruned network before and after recovery. Zeros make no dense runtime faster: the latency
column says so.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prunus import criteria, schedules
from prunus.allocate import Scope
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


@dataclass(frozen=True, eq=False)
class _Way:
    """How a copy of the dense network loses its weights; `what` names it in the progress."""

    what: str
    criterion: Criterion
    schedule: Schedule
    scope: Scope = "global"


_RANDOM = _Way("prune at random", criteria.random, schedules.constant, "layer")
_SHOT = _Way("prune in one shot", criteria.magnitude, schedules.constant)
_GRADUAL = _Way("prune", criteria.magnitude, schedules.cubic)


@one_thread()
def run(seed: int = 0, directory: str | Path | None = None, progress: Progress | None = None) -> Demo:
    """Run the whole demonstration for one seed; the pruned model is saved to `directory`, where given."""
    kept = None if directory is None else unfinished(directory)
    dense = digits.digits_cnn(seed=seed)
    named = renamed("train the dense network", progress)
    digits.train(dense, epochs=EPOCHS, seed=seed, run_dir=kept, progress=named)
    groups = group(trace(dense, example()), pattern=Element())
    grown = {way: _grown(way, dense, groups, seed, progress) for way in (_RANDOM, _SHOT, _GRADUAL)}
    trained = {way: _recovered(way, deepcopy(net), plan, seed, kept, progress) for way, (net, plan) in grown.items()}
    models = {
        DENSE: dense,
        "random zeros, recovered": trained[_RANDOM],
        "one shot, recovered": trained[_SHOT],
        "pruned, not recovered": grown[_GRADUAL][0],
        PRUNED: trained[_GRADUAL],
    }
    result = compare(dense, trained[_GRADUAL], grown[_GRADUAL][1], evaluate=digits.correct)
    done = Demo(rows_of(models, METRICS, progress), result)
    if directory is not None:
        save(result, directory, rows=done.rows, command=f"prunus run digits-sparse --seed {seed}")
        end(directory)
    return done


def _grown(way: _Way, dense: nn.Module, groups: Groups, seed: int, progress: Progress | None) -> tuple[nn.Module, Plan]:
    """A copy that loses its weights along the schedule, over `GRADUAL_EPOCHS` of training."""
    net = deepcopy(dense)
    steps = GRADUAL_EPOCHS * len(digits.batches())
    budget = Budget("units", at_most=DENSITY)
    gradual = Gradual(
        groups, way.criterion, budget, schedule=way.schedule, steps=steps, every=10, scope=way.scope, seed=seed
    )

    def attached(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        optimizer = adamw(parameters, lr)
        gradual.attach(net, optimizer)
        return optimizer

    named = renamed(f"{way.what}: zeros grow", progress)  # only the last epoch has all zeros: none is chosen as best
    digits.train(net, epochs=GRADUAL_EPOCHS, lr=LR, optimizer=attached, evaluate=None, seed=seed + 1, progress=named)
    return net, gradual.plan


def _recovered(
    way: _Way, net: nn.Module, plan: Plan, seed: int, kept: Path | None, progress: Progress | None
) -> nn.Module:
    with mask(net, plan):
        named = renamed(f"{way.what}: recover", progress)
        return digits.train(net, epochs=RECOVER_EPOCHS, lr=LR, seed=seed + 2, run_dir=kept, progress=named)
