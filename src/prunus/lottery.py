"""`lottery`: rounds of train, prune and rewind; what is left is a small part of the network from its beginning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from prunus import criteria
from prunus.allocate import Scope, allocate, check_ahead
from prunus.apply.mask import Mask, mask
from prunus.cost import whole
from prunus.criteria import Criterion
from prunus.densities import Densities
from prunus.errors import BudgetError, RecoverError
from prunus.fingerprint import name_of
from prunus.graph.groups import Groups, gathered
from prunus.graph.private import private_copy, unwrap
from prunus.measure.accuracy import accuracy
from prunus.measure.untouched import untouched
from prunus.patterns import NofM
from prunus.plan import Plan
from prunus.recover.precision import generators_kept
from prunus.rounds import Rounds
from prunus.score import Reduce, score
from prunus.types import Batch, Budget, Evaluate, Loss, Progress

Train: TypeAlias = Callable[[nn.Module, int, int], "nn.Module | None"]
"""train(model, begin, end): trains the model it is given from one step of the whole training to another."""
Rewind: TypeAlias = Literal["weights", "rate"]


@dataclass(frozen=True, eq=False)
class Ticket:
    """What `lottery` found: `model`, pruned and trained, all tensors at full size; `plan`, which units it has.

    `start` is the whole network at the step that was rewound to, `dense` the whole network at the end of its training;
    all three are in evaluation mode.
    `history` has an entry for each training, the dense one first: {"round", "density" (share of the units), "score"
    (of `evaluate`, or None)}, and the costs that the plan predicts.
    """

    model: nn.Module
    plan: Plan
    start: nn.Module
    dense: nn.Module
    history: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, eq=False)
class _Ask:
    """What `lottery` was asked."""

    groups: Groups
    train: Train
    budget: Budget | None
    steps: int
    at: int
    rewind: Rewind
    rounds: int
    criterion: Criterion
    scope: Scope
    densities: Densities | None
    reduce: Reduce
    keep_at_least: float
    data: Iterable[Batch] | None
    loss: Loss | None
    evaluate: Evaluate | None
    seed: int
    progress: Progress | None


def lottery(
    model: nn.Module,
    groups: Groups,
    train: Train,
    budget: Budget | None = None,
    *,
    steps: int,
    at: int = 0,
    rewind: Rewind = "weights",
    rounds: int = 5,
    criterion: Criterion = criteria.magnitude,
    scope: Scope = "global",
    densities: Densities | None = None,
    reduce: Reduce = "sum",
    keep_at_least: float = 0.0,
    data: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    run_dir: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ticket:
    """Train an untrained model, then `rounds` times prune it, go back to step `at`, and train again with zeros held.

    `train(model, begin, end)` trains in place, with an optimizer of its own, from step `begin` to step `end` of a
    training of `steps`: learning rate and order of data are those of these steps. It is called with (0, at) and
    (at, steps) first, then with (at, steps) in each round. Steps are whatever `train` counts: batches or epochs.

    `rewind="weights"` puts all weights and buffers back to what they were at step `at`: at 0 this is the original
    lottery ticket; deeper networks need an `at` of a few hundredths of `steps`. `rewind="rate"` leaves them where they
    are: the learning rate alone begins again. Each round keeps the same share of what is left, so that `budget` is met
    in the last. `NofM` takes no budget and one round.

    Works for every pattern; of channels zeros are held too, and `shrink(ticket.model, ticket.plan)` makes the model
    smaller. The given model is not touched. torch's generators are seeded alike before every training; a `generator`
    of a DataLoader is for `train` to seed. With `run_dir` every finished training is kept, and the same call goes on
    after the last one to the same bits.

    `criterion`, `scope`, `densities`, `reduce`, `keep_at_least`, `data`, `loss` are those of `score` and `allocate`.

    Raises `BudgetError` for steps and rounds out of range, `RecoverError` when `train` returns something else than a
    model or None, and what `score` and `allocate` raise: before anything is trained, where it can be told.

    Source: Frankle & Carbin 2019, arXiv:1803.03635; rewinding to a step: Frankle et al. 2020, arXiv:1912.05671;
    learning-rate rewinding: Renda et al. 2020, arXiv:2003.02389. As in their code momentum is not rewound: the
    optimizer is new at step `at`.

    >>> from prunus import Budget, Element, group
    >>> net = nn.Linear(4, 4)
    >>> def train(net, begin, end):
    ...     optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ...     for step in range(begin, end):
    ...         optimizer.zero_grad()
    ...         net(torch.ones(1, 4)).square().sum().backward()
    ...         optimizer.step()
    >>> ticket = lottery(net, group(net, pattern=Element()), train, Budget("units", 0.25), steps=4, at=1, rounds=2)
    >>> [entry["density"] for entry in ticket.history], int((ticket.model.weight != 0).sum())
    ([1.0, 0.5, 0.25], 4)
    """
    how = scope, densities, reduce, keep_at_least, data, loss, evaluate, seed, progress
    ask = _Ask(groups, train, budget, steps, at, rewind, rounds, criterion, *how)
    _check_door(ask)
    model = unwrap(model)
    start = _start(ask, model, run_dir)
    kept = Rounds.at(run_dir, model, groups, _settings(ask))
    net, plan, history = _last(kept, start, Plan(groups, {}, budget))
    dense = _first(kept, start) if history else None
    for number in range(len(history), rounds + 1):
        plan = _pruned(ask, net, plan, number) if number else plan
        net = private_copy(net if number and rewind == "rate" else start, share=False)
        net = _trained(ask, net, plan, at, steps, f"round {number}: train")
        history.append(_entry(ask, net, plan, number))
        kept.keep(net, plan, history)
        dense = dense or net
    assert dense is not None
    return Ticket(net.eval(), plan, start.eval(), dense.eval(), tuple(history))


def _start(ask: _Ask, model: nn.Module, run_dir: str | Path | None) -> nn.Module:
    """A copy of the model at the step that is rewound to."""
    kept = Rounds.at(None if run_dir is None else Path(run_dir) / "start", model, ask.groups, _settings(ask))
    if kept.finished():
        return kept.whole(model, kept.finished()[-1])[0]
    net, nothing = private_copy(model, share=False), Plan(ask.groups, {}, ask.budget)
    if ask.at:
        net = _trained(ask, net, nothing, 0, ask.at, "train to the step to go back to")
        kept.keep(net, nothing, [{"step": ask.at}])
    return net


def _last(kept: Rounds, start: nn.Module, plan: Plan) -> tuple[nn.Module, Plan, list[Mapping[str, Any]]]:
    found = kept.finished()
    return kept.whole(start, found[-1]) if found else (start, plan, [])


def _first(kept: Rounds, start: nn.Module) -> nn.Module:
    return kept.whole(start, kept.finished()[0])[0]


def _pruned(ask: _Ask, net: nn.Module, plan: Plan, number: int) -> Plan:
    """The plan of one round: the same share as in every other of what is left goes."""
    here, seed = ask.groups.at(plan), ask.seed + number
    every = score(net, ask.groups, ask.criterion, data=ask.data, loss=ask.loss, reduce=ask.reduce, seed=seed)
    scores, target, least = gathered(ask.groups, here, every), _target(ask, number), ask.keep_at_least
    step = allocate(here, scores, target, scope=ask.scope, densities=ask.densities, keep_at_least=least)
    whole = plan.then(step)
    return replace(whole, provenance={**step.provenance, **_settings(ask)})


def _target(ask: _Ask, number: int) -> Budget | None:
    if ask.budget is None or number == ask.rounds:
        return ask.budget
    before = 1.0 if ask.budget.relative else whole(ask.budget.metric, ask.groups)
    share = min(1.0, ask.budget.at_most / before)
    return replace(ask.budget, at_most=before * share ** (number / ask.rounds))


def _trained(ask: _Ask, net: nn.Module, plan: Plan, begin: int, end: int, what: str) -> nn.Module:
    """The model trained from one step to another, with the zeros of the plan."""
    if ask.progress is not None:
        ask.progress(what, 0, 1)
    net.train()
    with generators_kept(), mask(net, plan):
        torch.manual_seed(ask.seed + begin)
        given: Any = ask.train(net, begin, end)
    if given is not None and not isinstance(given, nn.Module):
        raise RecoverError(
            f"train(model, begin, end) returned a {type(given).__name__}; expected None, or the trained model. "
            "Is it the last loss?"
        )
    net = net if given is None else given
    Mask(net, plan)  # in case that another model came back, or that no torch optimizer trained it
    if ask.progress is not None:
        ask.progress(what, 1, 1)
    return net


def _entry(ask: _Ask, net: nn.Module, plan: Plan, number: int) -> Mapping[str, Any]:
    here = ask.groups.at(plan)
    left = sum(int(here.left(group).sum()) for group in here)
    costs = {name: after for name, (_, after) in plan.costs.items()}
    return {"round": number, "density": left / sum(group.size for group in here), **costs, "score": _quality(ask, net)}


def _quality(ask: _Ask, net: nn.Module) -> float | None:
    if ask.evaluate is None:
        return None
    with untouched(net):
        return accuracy(net, ask.evaluate)[0]


def _check_door(ask: _Ask) -> None:
    if ask.rewind not in get_args(Rewind):
        raise BudgetError(f"Unknown rewind={ask.rewind!r}; expected one of {', '.join(get_args(Rewind))}.")
    if not 0 <= ask.at < ask.steps:
        raise BudgetError(f"at={ask.at} of steps={ask.steps}; expected a step to go back to, before the last.")
    if ask.rounds < 1:
        raise BudgetError(f"rounds={ask.rounds}; expected at least 1.")
    pattern = ask.groups.pattern
    if isinstance(pattern, NofM):
        if ask.rounds > 1:
            raise BudgetError(f"{pattern} is reached in one round, not in {ask.rounds}; pass rounds=1.")
    elif ask.budget is None:
        raise BudgetError(f'{pattern} needs a budget, such as prunus.Budget("units", at_most=0.1).')
    limits: dict[str, Any] = {"scope": ask.scope, "densities": ask.densities, "keep_at_least": ask.keep_at_least}
    check_ahead(ask.groups, ask.criterion, ask.budget, data=ask.data, loss=ask.loss, **limits)


def _settings(ask: _Ask) -> dict[str, Any]:
    """What decides the outcome, as far as it can be written down."""
    return {
        "train": name_of(ask.train),
        "criterion": name_of(ask.criterion),
        "scope": ask.scope,
        "densities": None if ask.densities is None else name_of(ask.densities),
        "reduce": ask.reduce,
        "keep_at_least": ask.keep_at_least,
        "budget": None if ask.budget is None else vars(ask.budget),
        "rewind": ask.rewind,
        "at": ask.at,
        "steps": ask.steps,
        "rounds": ask.rounds,
        "seed": ask.seed,
    }
