"""`lottery`: what each round starts from, what is left after each, and a killed run goes on to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Block, Budget, Channel, Element, Groups, NofM, Ticket, criteria, densities
from prunus.errors import ArtifactError, BudgetError, CriterionError, RecoverError
from prunus.patterns import Pattern

STEPS, AT, ROUNDS, SHARE = 6, 2, 3, 0.3
PATTERNS: list[Pattern] = [Element(), Block(2, 1), Channel()]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    ends = nn.Linear(4, 10), nn.Linear(10, 20), nn.Linear(20, 4)
    return nn.Sequential(ends[0], nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.1), ends[1], nn.ReLU(), ends[2])


def laid(model: nn.Module, pattern: Pattern) -> Groups:
    return prunus.group(prunus.trace(model, torch.randn(2, 4)), pattern=pattern)


def train(model: nn.Module, begin: int, end: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(begin, end):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x.flip(1)).square().mean().backward()
        optimizer.step()


class Watched:
    """`train` that writes down what it is given and leaves; fails at one call, if told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls: list[tuple[int, int]] = []
        self.given: list[dict[str, Tensor]] = []
        self.left: list[dict[str, Tensor]] = []
        self.draws: list[float] = []
        self.fails_at = fails_at

    def __call__(self, model: nn.Module, begin: int, end: int) -> None:
        assert model.training
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        self.calls.append((begin, end))
        self.given.append(state(model))
        self.draws.append(float(torch.rand(())))
        train(model, begin, end)
        self.left.append(state(model))
        model.eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def found(train: Any = train, pattern: Pattern | None = None, model: nn.Module | None = None, **options: Any) -> Ticket:
    model, pattern = model or net(), pattern or Element()
    budget = None if isinstance(pattern, NofM) else Budget("units", at_most=SHARE)
    groups = laid(model, pattern)
    return prunus.lottery(model, groups, train, budget, **{"steps": STEPS, "at": AT, "rounds": ROUNDS, **options})


def zeroed(state: dict[str, Tensor], ticket: Ticket, plan: Any) -> dict[str, Tensor]:
    model = net()
    model.load_state_dict(state)
    prunus.mask(model, plan).detach()
    return model.state_dict()


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_each_round_keeps_the_same_share_of_what_is_left(pattern: Pattern) -> None:
    ticket = found(pattern=pattern)
    units = sum(g.size for g in ticket.plan.groups)
    for number, entry in enumerate(ticket.history):
        assert entry["round"] == number
        assert entry["density"] == int(SHARE ** (number / ROUNDS) * units + 1e-9) / units
    assert [entry["score"] for entry in ticket.history] == [None] * 4
    assert ticket.plan.budget == Budget("units", at_most=SHARE)
    assert ticket.plan.provenance["rewind"] == "weights"


@pytest.mark.parametrize("budget", [Budget("params", 0.4), Budget("macs", 0.4), Budget("params", 150, relative=False)])
@pytest.mark.parametrize("pattern", [Element(), Channel()], ids=repr)
def test_other_budgets_are_met_too(pattern: Pattern, budget: Budget) -> None:
    model = net()
    ticket = prunus.lottery(model, laid(model, pattern), train, budget, steps=3, rounds=2)
    before, after = ticket.plan.costs[budget.metric]
    most = budget.at_most * before if budget.relative else budget.at_most
    assert 0.75 * most < after <= most
    first = ticket.history[1][budget.metric]
    assert first == pytest.approx((most * before) ** 0.5, rel=0.15)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("at", [0, AT])
def test_weights_go_back_to_the_step_and_buffers_too(pattern: Pattern, at: int) -> None:
    watched, model = Watched(), net()
    ticket = found(watched, pattern, model, at=at)
    assert watched.calls == [(0, AT)] * bool(at) + [(at, STEPS)] * 4
    begun = watched.left[0] if at else state(model)
    assert same(state(ticket.start), begun)
    rounds = watched.given[-ROUNDS:]
    for given in rounds:
        assert all(bool(((given[n] == begun[n]) | (given[n] == 0)).all()) for n in begun)
        assert torch.equal(given["1.num_batches_tracked"], begun["1.num_batches_tracked"])
    assert same(rounds[-1], zeroed(begun, ticket, ticket.plan))
    assert same(watched.left[-1 - ROUNDS], state(ticket.dense))
    assert same(watched.left[-1], state(ticket.model))


def test_with_the_rate_alone_weights_stay_where_they_are() -> None:
    watched = Watched()
    ticket = found(watched, rewind="rate")
    assert watched.calls == [(0, AT)] + [(AT, STEPS)] * 4
    for number in range(2, 5):
        left, given = watched.left[number - 1], watched.given[number]
        assert all(bool(((given[n] == left[n]) | (given[n] == 0)).all()) for n in left)
    assert same(watched.given[-1], zeroed(watched.left[-2], ticket, ticket.plan))


def test_every_training_draws_the_same_whatever_was_drawn_before() -> None:
    model, runs = net(), []
    for before, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(before)
        runs.append(Watched())
        found(runs[-1], model=model, seed=seed)
        assert len({*runs[-1].draws[1:]}) == 1
    assert same(runs[0].left[-1], runs[1].left[-1])
    assert runs[1].draws != runs[2].draws


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("rewind", ["weights", "rate"])
def test_the_model_is_not_touched_nor_the_random_numbers(pattern: Pattern, rewind: Any) -> None:
    model = net().eval()
    groups = laid(model, pattern)
    before, draws = state(model), torch.get_rng_state()
    prunus.lottery(model, groups, train, Budget("units", SHARE), steps=3, at=1, rounds=2, rewind=rewind)
    assert same(state(model), before)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), draws)


def test_zeros_hold_while_it_trains() -> None:
    for pattern in PATTERNS:
        ticket = found(pattern=pattern)
        for group in ticket.plan.groups:
            kept = ticket.plan.left[group.leaf]
            weight = ticket.model.get_parameter(group.producers[0].state)
            zeros = ~kept if group.grid is None else ~group.grid.spread(kept)
            assert not bool(weight[zeros].any())


def test_channels_that_went_are_cut_out() -> None:
    ticket = found(pattern=Channel())
    small = prunus.shrink(ticket.model, ticket.plan)
    assert small[0].out_features + small[4].out_features == int(SHARE * 30)
    x = torch.randn(5, 4)
    torch.testing.assert_close(small.eval()(x), ticket.model.eval()(x))


def test_another_model_may_come_back() -> None:
    def returned(model: nn.Module, begin: int, end: int) -> nn.Module:
        other = net()
        other.load_state_dict(model.state_dict())
        train(other, begin, end)
        return other

    ticket = found(returned)
    assert int(ticket.model[4].weight.count_nonzero()) == int(
        ticket.plan.left[ticket.plan.groups["4.weight"].leaf].sum()
    )


def test_scores_densities_and_progress_are_passed_on() -> None:
    told: list[str] = []
    options = {"densities": densities.erk, "evaluate": lambda model: torch.ones(4), "criterion": criteria.random}
    ticket = found(progress=lambda what, done, total: told.append(f"{what} {done}/{total}"), **options)
    shares = densities.erk(ticket.plan.groups, {}, SHARE)
    for name, kept in ticket.plan.keep.items():
        assert int(kept.sum()) == pytest.approx(shares[name] * kept.numel(), abs=1)
    assert [entry["score"] for entry in ticket.history] == [1.0] * 4
    assert told[0] == "train to the step to go back to 0/1"
    assert told[-1] == f"round {ROUNDS}: train 1/1"


def test_n_of_m_takes_one_round() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    groups = prunus.group(model, pattern=NofM(2, 4))
    ticket = prunus.lottery(model, groups, train, steps=3, rounds=1)
    assert [entry["density"] for entry in ticket.history] == [1.0, 0.5]


# A killed run


@pytest.mark.parametrize("rewind", ["weights", "rate"])
@pytest.mark.parametrize("pattern", [Element(), Channel()], ids=repr)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, pattern: Pattern, rewind: Any) -> None:
    whole = found(Watched(), pattern, rewind=rewind)
    for fails_at in range(ROUNDS + 2):
        folder = tmp_path / str(fails_at)
        with pytest.raises(KeyboardInterrupt):
            found(Watched(fails_at), pattern, rewind=rewind, run_dir=folder)
        watched = Watched()
        again = found(watched, pattern, rewind=rewind, run_dir=folder)
        assert len(watched.calls) == ROUNDS + 2 - fails_at
        for part in ("model", "start", "dense"):
            assert same(state(getattr(again, part)), state(getattr(whole, part)))
            assert not any(m.training for each in (again, whole) for m in getattr(each, part).modules())
        assert again.history == whole.history
        kept, again_kept = whole.plan.left, again.plan.left
        names = {g.leaf: g.name for g in whole.plan.groups.every}, {g.leaf: g.name for g in again.plan.groups.every}
        assert same({names[0][k]: v for k, v in kept.items()}, {names[1][k]: v for k, v in again_kept.items()})
    finished = found(Watched(0), pattern, rewind=rewind, run_dir=tmp_path / "0")  # nothing is left to train
    assert same(state(finished.model), state(whole.model))


def test_a_train_that_holds_objects_goes_on_in_another_process(tmp_path: Path) -> None:
    """Whose addresses differ there."""

    class Loader:
        pass

    def with_loader(loaders: Any, model: nn.Module, begin: int, end: int, *, rate: float) -> None:
        train(model, begin, end)

    def given(rate: float) -> Any:
        return partial(with_loader, [Loader()], rate=rate)

    first, second = given(0.1), given(0.1)
    whole = found(first, run_dir=tmp_path)
    assert same(state(found(second, run_dir=tmp_path).model), state(whole.model))
    with pytest.raises(ArtifactError, match="holds rounds of another run"):
        found(given(0.2), run_dir=tmp_path)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    found(run_dir=tmp_path)
    with pytest.raises(ArtifactError, match="holds rounds of another run"):
        found(run_dir=tmp_path, rewind="rate")


def test_a_damaged_round_is_named(tmp_path: Path) -> None:
    found(run_dir=tmp_path)
    (tmp_path / "round-004" / "state.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"round-004 is no whole round"):
        found(run_dir=tmp_path)


# Errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"at": STEPS}, "at=6 of steps=6; expected a step to go back to, before the last"),
        ({"at": -1}, "at=-1 of steps=6"),
        ({"rounds": 0}, "rounds=0; expected at least 1"),
        ({"rewind": "init"}, "Unknown rewind='init'; expected one of weights, rate"),
        ({"pattern": NofM(1, 2), "rounds": 2}, r"NofM\(n=1, m=2\) is reached in one round, not in 2; pass rounds=1"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_trains(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        found(Watched(0), **wrong)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"criterion": criteria.taylor}, CriterionError, "taylor: "),
        ({"keep_at_least": 0.9}, BudgetError, "cannot be reached"),
        ({"scope": "columns"}, BudgetError, "Unknown scope 'columns'"),
    ],
    ids=["needs", "budget", "scope"],
)
def test_what_scoring_will_ask_for_is_asked_before_anything_trains(wrong: Any, error: Any, message: str) -> None:
    watched = Watched()
    with pytest.raises(error, match=message):
        found(watched, **wrong)
    assert not watched.calls


def test_no_budget_is_refused() -> None:
    model = net()
    with pytest.raises(BudgetError, match="needs a budget"):
        prunus.lottery(model, laid(model, Element()), Watched(0), steps=3)


def test_a_loss_that_comes_back_is_refused() -> None:
    wrong: Callable[..., Any] = lambda model, begin, end: 0.5  # noqa: E731
    with pytest.raises(
        RecoverError, match=r"returned a float; expected None, or the trained model. Is it the last loss"
    ):
        found(wrong)
