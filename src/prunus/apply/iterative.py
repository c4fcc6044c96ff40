"""`plan_iteratively`: the plan of many small rounds of scoring, without training in between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from prunus.allocate import Scope, allocate, partway
from prunus.apply.mask import masked
from prunus.cost import whole
from prunus.criteria.needs import Criterion, check_needs
from prunus.densities import Densities
from prunus.errors import BudgetError
from prunus.fingerprint import name_of
from prunus.graph.groups import Groups, gathered
from prunus.patterns import NofM
from prunus.plan import Plan
from prunus.schedules import Schedule
from prunus.score import Reduce, score
from prunus.types import Batch, Budget, Loss, Progress


def plan_iteratively(
    model: nn.Module,
    groups: Groups,
    criterion: Criterion,
    budget: Budget,
    *,
    rounds: int = 100,
    schedule: Schedule | None = None,
    scope: Scope = "global",
    densities: Densities | None = None,
    reduce: Reduce = "sum",
    keep_at_least: float = 0.0,
    data: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Score, zero the least, score what is left again, until the budget is met: pruning at initialization.

    The model is not touched: each round scores a copy with zeros. `schedule` says how much of the way is gone after
    each share of the rounds; by default the share that is kept falls by the same factor each round (exponentially), as
    in the paper. With `rounds=1` this is `score` and `allocate`.

    With `synflow` no layer loses all its weights while another could lose one. Data that are read once (a generator)
    serve one round only.

    Raises what `score` and `allocate` raise; `BudgetError` for rounds below 1 and for `NofM`, which has one round.

    >>> import torch
    >>> from prunus import Channel, criteria, group, trace
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> groups = group(trace(net, torch.randn(2, 4)), pattern=Channel())
    >>> plan = plan_iteratively(net, groups, criteria.synflow, Budget("units", at_most=0.5), rounds=4)
    >>> int(plan.keep["0"].sum())
    4

    Source: Tanaka et al. 2020 (SynFlow), arXiv:2006.05467, algorithm 1.
    """
    check_needs(criterion, groups.pattern, data, loss, traced=groups.source is not None)
    if rounds < 1:
        raise BudgetError(f"rounds={rounds}; expected at least 1.")
    if isinstance(groups.pattern, NofM):
        raise BudgetError(f"{groups.pattern} is reached in one round: use score and allocate.")
    reach = schedule or _exponential(budget, groups)
    plan = Plan(groups, {}, budget)
    for done in range(1, rounds + 1):
        scores = score(
            masked(model, plan), groups, criterion, data=data, loss=loss, reduce=reduce, seed=seed + done - 1
        )
        here = groups.at(plan)
        left = gathered(groups, here, scores)
        target = partway(budget, groups, reach(done / rounds) if done < rounds else 1.0)
        step = allocate(here, left, target, scope=scope, densities=densities, keep_at_least=keep_at_least)
        plan = plan.then(step)
        if progress is not None:
            progress("scoring", done, rounds)
    made = {"criterion": name_of(criterion), "rounds": rounds, "seed": seed}
    return replace(plan, provenance={**plan.provenance, **made})


def _exponential(budget: Budget, groups: Groups) -> Schedule:
    """What is kept falls by the same factor in each round: it is d^p after a share p of them."""
    kept = budget.at_most if budget.relative else min(1.0, budget.at_most / whole(budget.metric, groups))
    return lambda progress: (1 - kept**progress) / (1 - kept) if kept < 1 else progress
