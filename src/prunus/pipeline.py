"""`prune`: the whole pipeline as one short loop over the schedule."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus import criteria, schedules
from prunus.allocate import Scope, allocate, partway
from prunus.apply.apply import apply
from prunus.apply.mask import Mask, mask
from prunus.criteria import Criterion
from prunus.criteria.needs import check_needs
from prunus.densities import Densities
from prunus.errors import BudgetError, CriterionError, GroupError, RecoverError, TraceError
from prunus.fingerprint import name_of
from prunus.graph.group import group
from prunus.graph.groups import Groups
from prunus.graph.private import unwrap
from prunus.graph.trace import trace
from prunus.measure.accuracy import accuracy
from prunus.measure.untouched import untouched
from prunus.patterns import Channel, NofM, Pattern
from prunus.plan import Plan
from prunus.recover.precision import generators_kept
from prunus.result import Result, compare
from prunus.rounds import Rounds
from prunus.schedules import Schedule
from prunus.score import Reduce, score
from prunus.types import Batch, Budget, Evaluate, Loss, Means, Progress, Recover

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Ask:
    """What `prune` was asked, passed from step to step."""

    budget: Budget | None
    criterion: Criterion
    scope: Scope
    densities: Densities | None
    reduce: Reduce
    keep_at_least: float
    schedule: Schedule
    rounds: int
    data: Iterable[Batch] | None
    loss: Loss | None
    recover: Recover | None
    evaluate: Evaluate | None
    seed: int
    progress: Progress | None


def prune(
    model: nn.Module,
    inputs: Any,
    *,
    budget: Budget | None = None,
    pattern: Pattern | None = None,
    criterion: Criterion = criteria.magnitude,
    scope: Scope = "global",
    densities: Densities | None = None,
    reduce: Reduce = "sum",
    keep_at_least: float | None = None,
    schedule: Schedule = schedules.linear,
    rounds: int = 1,
    data: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    recover: Recover | None = None,
    evaluate: Evaluate | None = None,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    inexact: bool = False,
    means: Means = "kept",
    outputs: Sequence[str] | None = None,
    run_dir: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Prune a trained model to a budget, recover it, and measure both. The model itself is not touched.

    With `Channel` units are cut out and the result is really smaller. With `Element`, `NofM` and `Block` the result is
    a copy with zeros, held while `recover` trains it.

    Args:
        model, inputs: a trained model and an example call (see `trace`).
        budget: what may be left at the end, relative to `model`; none for `NofM`, which fixes its own density.
        criterion, reduce, scope, densities, keep_at_least: which units go, see `score` and `allocate`. By default a
            tenth of each group of channels stays in any case, and of patterns within tensors one unit.
        schedule, rounds: the budget is reached in `rounds` steps of prune and recover; `schedule` says how much of it
            after each.
        data, loss: batches and `loss(model, batch)`, for criteria that look at gradients. A `generator` that the data
            have (of a DataLoader) is seeded in each round.
        recover: trains the model it is given, in place or returning it; called after each round, for example
            `lambda net: prunus.finetune(net, batches, loss, epochs=3)`.
        evaluate: `evaluate(model)` -> one score a sample (n,), for intervals and a paired test; or a bare number.
        only, skip: globs of group names, or of modules or weights that make them; `inexact=True` also prunes groups
            whose removal changes the statistic of a normalisation.
        means: "whole" makes units that only means and RMS norms run over exact, see `trace`.
        outputs: entries of a mapping result that count, see `trace`; axes of all other results are free.
        run_dir: finished rounds are kept there; the same call again goes on after the last one.

    Raises the errors of the steps it calls: `TraceError`, `GroupError`, `CriterionError`, `BudgetError`, `ProofError`.
    """
    pattern = pattern or Channel()
    _check_door(model, budget, pattern, criterion, rounds)
    check_needs(criterion, pattern, data, loss, traced=True)
    least = _least(keep_at_least, pattern)
    how = scope, densities, reduce, least
    ask = Ask(budget, criterion, *how, schedule, rounds, data, loss, recover, evaluate, seed, progress)
    model, groups = _traced(model, inputs, pattern, only, skip, inexact, means, outputs)
    settings = {"pattern": str(pattern), **_settings(ask)}
    small, plan, history = _loop(ask, model, groups, Rounds.at(run_dir, model, groups, settings))
    return compare(model, small, plan, evaluate=evaluate, history=history, progress=progress)


def plan_for(
    model: nn.Module,
    inputs: Any,
    *,
    budget: Budget | None = None,
    pattern: Pattern | None = None,
    criterion: Criterion = criteria.magnitude,
    scope: Scope = "global",
    densities: Densities | None = None,
    reduce: Reduce = "sum",
    keep_at_least: float | None = None,
    data: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    inexact: bool = False,
    means: Means = "kept",
    seed: int = 0,
) -> Plan:
    """The plan that `prune` with the same arguments would make, in one round, with its predicted costs; a dry run."""
    pattern = pattern or Channel()
    _check_door(model, budget, pattern, criterion, 1)
    check_needs(criterion, pattern, data, loss, traced=True)
    least = _least(keep_at_least, pattern)
    how = scope, densities, reduce, least
    ask = Ask(budget, criterion, *how, schedules.linear, 1, data, loss, None, None, seed, None)
    model, groups = _traced(model, inputs, pattern, only, skip, inexact, means, None)
    with _seeded(ask, 1):
        return _decide(ask, model, groups, 1)


def _least(keep_at_least: float | None, pattern: Pattern) -> float:
    if keep_at_least is not None:
        return keep_at_least
    return 0.1 if isinstance(pattern, Channel) else 0.0


def _traced(
    model: nn.Module,
    inputs: Any,
    pattern: Pattern,
    only: str | Sequence[str],
    skip: str | Sequence[str],
    inexact: bool,
    means: Means,
    outputs: Sequence[str] | None,
) -> tuple[nn.Module, Groups]:
    model = unwrap(model)
    graph = trace(model, inputs, outputs=outputs, means=means)
    return model, _exact(group(graph, pattern=pattern, only=only, skip=skip), inexact)


def _loop(ask: Ask, model: nn.Module, groups: Groups, kept: Rounds) -> tuple[nn.Module, Plan, list[Mapping[str, Any]]]:
    small, plan, history = kept.last(model)
    for done in range(len(history), ask.rounds):
        with _seeded(ask, done + 1):
            small, plan, entry = _round(ask, small, plan, groups, done + 1)
        history.append(entry)
        kept.keep(small, plan, history)
        _log.info("round %d of %d: %s", done + 1, ask.rounds, history[-1])
    assert plan is not None
    return small, plan, history


def _round(
    ask: Ask, small: nn.Module, plan: Plan | None, groups: Groups, number: int
) -> tuple[nn.Module, Plan, Mapping[str, Any]]:
    with _told(ask, f"round {number}: score and cut"):
        step = _decide(ask, small, groups if plan is None else groups.at(plan), number)
        small = apply(small, step)
        plan = step if plan is None else plan.then(step)
        cut = _quality(ask, small)
    if ask.recover is not None:
        with _told(ask, f"round {number}: recover"):
            small = _recovered(ask.recover, small, plan)
    costs = {name: after for name, (_, after) in plan.costs.items()}
    return small, plan, {"round": number, **costs, "cut": cut, "recovered": _quality(ask, small)}


@contextmanager
def _seeded(ask: Ask, number: int) -> Generator[None]:
    """Each round draws the same, whether a killed run goes on with it or not; the caller's generators stay."""
    with generators_kept():
        torch.manual_seed(ask.seed + number)
        own = getattr(ask.data, "generator", None)  # of a shuffling DataLoader
        if isinstance(own, torch.Generator):
            own.manual_seed(ask.seed + number)
        yield


def _check_door(model: Any, budget: Any, pattern: Pattern, criterion: Any, rounds: int) -> None:
    """Arguments that would fail only after minutes, or with an error of another's."""
    if not isinstance(model, nn.Module):
        raise TraceError(f"The model is a {type(model).__name__}; expected a torch.nn.Module.")
    if not isinstance(budget, Budget) and not (budget is None and isinstance(pattern, NofM)):
        raise BudgetError(f'budget={budget!r}; expected a Budget, such as prunus.Budget("macs", at_most=0.5).')
    if not callable(criterion):
        raise CriterionError(f"criterion={criterion!r}; expected a function, such as prunus.criteria.magnitude.")
    if rounds < 1:
        raise BudgetError(f"rounds={rounds}; expected at least 1.")
    if rounds > 1 and isinstance(pattern, NofM):
        raise BudgetError(f"{pattern} is reached in one round, not in {rounds}; to go there in steps use Gradual.")


def _recovered(recover: Recover, small: nn.Module, plan: Plan) -> nn.Module:
    """The model that `recover` returns, or the one it was given to train in place; zeros are held meanwhile."""
    with mask(small, plan) if plan.groups.laid else nullcontext():
        given: Any = recover(small)
    if given is not None and not isinstance(given, nn.Module):
        raise RecoverError(
            f"recover(model) returned a {type(given).__name__}; expected the trained model, or None for the model it "
            "was given. Is it the last loss?"
        )
    small = small if given is None else given
    if plan.groups.laid:
        Mask(small, plan)  # in case that another model came back, or that no torch optimizer trained it
    return small


def _decide(ask: Ask, small: nn.Module, here: Groups, number: int) -> Plan:
    """The plan of one round, pure: nothing is cut yet."""
    target = _target(ask, here, number)
    seed = ask.seed + number
    scores = score(small, here, ask.criterion, data=ask.data, loss=ask.loss, reduce=ask.reduce, seed=seed)
    least = ask.keep_at_least
    plan = allocate(here, scores, target, scope=ask.scope, densities=ask.densities, keep_at_least=least)
    return replace(plan, provenance={**plan.provenance, **_settings(ask)})


def _target(ask: Ask, groups: Groups, number: int) -> Budget | None:
    """The budget of one round: the way from the whole model to the target, as far as the schedule says."""
    if ask.budget is None or number == ask.rounds:
        return ask.budget
    return partway(ask.budget, groups, ask.schedule(number / ask.rounds))


def _exact(groups: Groups, inexact: bool) -> Groups:
    exact = groups if inexact else groups.only(exact=True)
    if not len(exact):
        why = "; ".join(f"{g.name}: {g.why}" for g in list(groups)[:4]) or "only and skip left out every group"
        raise GroupError(
            f"Nothing is left to prune: {why}. Pass inexact=True to allow groups whose removal is not exact."
        )
    return exact


def _quality(ask: Ask, model: nn.Module) -> float | None:
    if ask.evaluate is None:
        return None
    with untouched(model):
        return accuracy(model, ask.evaluate)[0]


def _settings(ask: Ask) -> dict[str, Any]:
    """What decides the outcome, as far as it can be written down."""
    return {
        "criterion": name_of(ask.criterion),
        "scope": ask.scope,
        "densities": None if ask.densities is None else name_of(ask.densities),
        "reduce": ask.reduce,
        "keep_at_least": ask.keep_at_least,
        "schedule": name_of(ask.schedule),
        "rounds": ask.rounds,
        "budget": None if ask.budget is None else vars(ask.budget),
        "seed": ask.seed,
    }


@contextmanager
def _told(ask: Ask, what: str) -> Generator[None]:
    """A step that is begun, and done."""
    if ask.progress is not None:
        ask.progress(what, 0, 1)
    yield
    if ask.progress is not None:
        ask.progress(what, 1, 1)
