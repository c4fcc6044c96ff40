"""Densities a layer: the values of the formulas, the budget met with them, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from itertools import pairwise
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus import Block, Budget, Channel, Element, Groups, NofM, Plan, allocate, criteria, densities, group, score
from prunus.densities import Densities
from prunus.errors import BudgetError, CriterionError, RecipeError
from prunus.patterns import Pattern
from prunus.recipe import parse
from prunus.scores import lamp

EVERY: list[Densities] = [
    *(densities.uniform, densities.erk, densities.owl, densities.arithmetic),
    partial(densities.owl, outlier=1.5, bound=0.3),
]
PATTERNS: list[Pattern] = [Element(), Block(2, 1), Channel(), Channel(round_to=4)]
shapes = st.lists(st.integers(1, 6).map(lambda n: 2 * n), min_size=3, max_size=5)
budgets = st.builds(Budget, st.sampled_from(["units", "params", "macs"]), st.floats(0.2, 1.0))


def mlp(widths: list[int], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o, bias=False), nn.ReLU())))


def laid(model: nn.Sequential, pattern: Pattern) -> Groups:
    return group(prunus.trace(model, torch.randn(2, model[0].in_features)), pattern=pattern)


def sized(*sizes: tuple[int, ...]) -> Groups:
    """Elements of weights of these shapes, each a linear layer or a convolution."""
    layers = [nn.Linear(s[1], s[0]) if len(s) == 2 else nn.Conv2d(s[1], s[0], (s[2], s[3])) for s in sizes]
    return group(nn.ModuleList(layers), pattern=Element())


def mean(groups: Groups, shares: Mapping[str, float]) -> float:
    return sum(shares[g.name] * g.size for g in groups) / sum(g.size for g in groups)


# The formulas


def test_erk_by_hand() -> None:
    shares = densities.erk(sized((10, 10), (30, 10)), {}, 0.3)  # raw 0.2 and 40/300; 120 = f (20 + 40)
    assert shares == pytest.approx({"0.weight": 0.4, "1.weight": 80 / 300})
    shares = densities.erk(sized((16, 8, 3, 3), (10, 16)), {}, 0.1)  # raw 30/1152 and 26/160; 131.2 = f (30 + 26)
    assert shares == pytest.approx({"0.weight": 131.2 / 56 * 30 / 1152, "1.weight": 131.2 / 56 * 26 / 160})


def test_erk_makes_small_layers_dense_and_shares_the_rest() -> None:
    shares = densities.erk(sized((2, 4), (100, 100)), {}, 0.5)  # 0.5 * 10008 - 8 = 4996 of 10000
    assert shares == pytest.approx({"0.weight": 1.0, "1.weight": 0.4996})


@settings(max_examples=50)
@given(shapes, st.floats(0.01, 1.0))
def test_erk_is_proportional_up_to_one_and_keeps_the_mean(widths: list[int], density: float) -> None:
    groups = laid(mlp(widths), Element())
    raw = {g.name: sum(g.grid.shape) / prod(g.grid.shape) for g in groups if g.grid}
    shares = densities.erk(groups, {}, density)
    assert mean(groups, shares) == pytest.approx(density)
    factor = max((shares[n] / raw[n] for n in raw if shares[n] < 1), default=1 / min(raw.values()))
    assert shares == pytest.approx({name: min(1.0, factor * r) for name, r in raw.items()})


def test_erk_of_channels_reads_the_weights_that_make_them() -> None:
    groups = laid(mlp([4, 8, 16, 2]), Channel())  # made by (8, 4): 12/32; by (16, 8): 24/128; 12 = f (3 + 3)
    assert densities.erk(groups, {}, 0.25) == pytest.approx({"0": 0.375, "2": 0.1875})


def test_owl_by_hand() -> None:
    groups = sized((1, 10), (2, 5), (4, 5))
    one = torch.ones(9)
    scores = {
        "0.weight": torch.cat([one, one.new_tensor([100.0])]),  # mean 10.9: one of ten above 54.5
        "1.weight": torch.ones(10),
        "2.weight": torch.cat([one, one, one.new_tensor([100.0, 100.0])]),  # mean 10.9: two of twenty
    }
    shares = densities.owl(groups, scores, 0.5)  # 0.16, 0, 0.16, whose mean over 40 units is 0.12
    assert shares == pytest.approx({"0.weight": 0.54, "1.weight": 0.38, "2.weight": 0.54})
    shares = densities.owl(groups, scores, 0.5, outlier=20.0)
    assert shares == pytest.approx(densities.uniform(groups, scores, 0.5))


def test_units_that_are_gone_count_as_zero_for_owl() -> None:
    groups = sized((1, 10), (1, 10))
    whole = {"0.weight": torch.tensor([30.0, *[1.0] * 4, *[0.0] * 5]), "1.weight": torch.ones(10)}
    plan = Plan(groups, {"0.weight": torch.arange(10) < 5})
    left = {"0.weight": whole["0.weight"][:5], "1.weight": whole["1.weight"]}
    assert densities.owl(groups.at(plan), left, 0.5) == pytest.approx(densities.owl(groups, whole, 0.5))
    assert densities.owl(groups, whole, 0.5)["0.weight"] == pytest.approx(0.58)


def test_arithmetic_by_hand() -> None:
    shares = densities.arithmetic(sized((1, 10), (2, 5), (5, 2)), {}, 0.5)
    assert shares == pytest.approx({"0.weight": 0.6, "1.weight": 0.5, "2.weight": 0.4})
    shares = densities.arithmetic(sized((1, 10), (3, 10)), {}, 0.5, span=0.4)  # 0.8, 0.4: (8 + 12) / 40
    assert shares == pytest.approx({"0.weight": 0.8, "1.weight": 0.4})
    shares = densities.arithmetic(sized((1, 10), (1, 10)), {}, 0.9, span=0.4)  # 1.1, 0.7 would be it
    assert shares == pytest.approx({"0.weight": 1.0, "1.weight": 0.8})


@pytest.mark.parametrize("least", [0.01, 0.05, 0.3])
def test_no_layer_loses_all_at_a_few_percent(least: float) -> None:
    """A small first layer before large ones, as networks have it."""
    groups = sized((4, 10), (20, 20), (20, 40), (5, 10))
    outliers = {g.name: torch.arange(g.size).double() ** (i + 1) for i, g in enumerate(groups)}
    for shares in (densities.arithmetic(groups, {}, least), densities.owl(groups, outliers, least, outlier=2.0)):
        assert min(shares.values()) > least / 100


@settings(max_examples=30)
@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=20))
def test_lamp_is_each_over_those_that_are_not_smaller(values: list[float]) -> None:
    found = lamp({"a": torch.tensor(values)})["a"].tolist()
    for value, share in zip(values, found, strict=True):
        larger = sum(other for other in values if other >= value)
        assert share == pytest.approx(value / larger if larger else 0.0)


def test_lamp_leaves_every_layer_its_best_weight() -> None:
    model = mlp([4, 8, 8, 2])
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    groups = group(model, pattern=Element())
    squares = score(model, groups, criteria.magnitude_l2)
    alone = allocate(groups, squares, Budget("units", 12, relative=False))
    fair = allocate(groups, lamp(squares), Budget("units", 12, relative=False))
    assert int(alone.keep["2.weight"].sum()) == 1
    assert int(fair.keep["2.weight"].sum()) > 1
    assert all(bool(kept[squares[name].argmax()]) for name, kept in fair.keep.items())


def test_lamp_of_negative_scores_is_refused() -> None:
    with pytest.raises(CriterionError, match=r"negative scores of 'a'; expected squares"):
        lamp({"a": torch.tensor([1.0, -1.0])})


# Within a budget


def reached(
    widths: list[int], pattern: Pattern, budget: Budget, given: Densities | None, **options: Any
) -> tuple[Groups, Mapping[str, Tensor], Plan]:
    groups, scores = scored(tuple(widths), pattern)
    return groups, scores, allocate(groups, scores, budget, densities=given, **options)


def plan_of(
    widths: list[int], pattern: Pattern, budget: Budget, given: Densities | None, **options: Any
) -> tuple[Groups, Mapping[str, Tensor], Plan | None]:
    """None where the budget cannot be reached."""
    try:
        return reached(widths, pattern, budget, given, **options)
    except BudgetError as error:
        if "cannot be reached" not in str(error):
            raise
        return *scored(tuple(widths), pattern), None


@cache
def scored(widths: tuple[int, ...], pattern: Pattern) -> tuple[Groups, Mapping[str, Tensor]]:
    model = mlp(list(widths))
    groups = laid(model, pattern)
    return groups, score(model, groups, criteria.magnitude)


def spent(plan: Plan, metric: str) -> float:
    if metric == "units":
        return sum(float(kept.sum()) for kept in plan.keep.values()) / sum(g.size for g in plan.groups)
    before, after = plan.costs[metric]
    return after / before


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("given_", EVERY, ids=lambda d: getattr(d, "__name__", "owl_with_options"))
def test_the_budget_is_met_with_counts_of_one_overall_density(pattern: Pattern, given_: Densities) -> None:
    @settings(max_examples=12)
    @given(shapes, budgets)
    def law(widths: list[int], budget: Budget) -> None:
        groups, scores, plan = plan_of(widths, pattern, budget, given_)
        if plan is None:
            return
        assert spent(plan, budget.metric) <= budget.at_most + 1e-9
        counts = {name: int(kept.sum()) for name, kept in plan.keep.items()}
        assert min(counts.values()) >= 1
        found = [given_(groups, scores, d / 200) for d in range(201)]
        step = pattern.round_to if isinstance(pattern, Channel) else 1
        off = [max(abs(min(1.0, f[g.name]) * g.size - counts[g.name]) for g in groups) for f in found]
        assert min(off) < step + 0.2 + max(g.size for g in groups) / 200

    law()


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("keep_at_least", [0.0, 0.3])
def test_uniform_is_the_scope_layer(pattern: Pattern, keep_at_least: float) -> None:
    @settings(max_examples=25)
    @given(shapes, budgets)
    def law(widths: list[int], budget: Budget) -> None:
        options = {"scope": "layer", "keep_at_least": keep_at_least}
        same, shared = (plan_of(widths, pattern, budget, d, **options)[2] for d in (None, densities.uniform))
        assert (same is None) == (shared is None)
        if same is not None and shared is not None:
            assert all(torch.equal(kept, shared.keep[name]) for name, kept in same.keep.items())

    law()


def test_the_budget_is_used_up_to_a_unit_a_layer() -> None:
    for given_ in EVERY:
        groups, _, plan = reached([10, 40, 30, 10], Element(), Budget("units", 0.3), given_)
        kept, room = sum(int(k.sum()) for k in plan.keep.values()), 0.3 * sum(g.size for g in groups)
        assert room - len(groups) < kept <= room


def test_the_best_of_each_layer_stay_and_rows_share_alike() -> None:
    for scope in ("global", "layer"):
        _, scores, plan = reached([10, 40, 30, 10], Element(), Budget("units", 0.3), densities.erk, scope=scope)
        for name, kept in plan.keep.items():
            assert scores[name][kept].min() > scores[name][~kept].max()
    groups, _, rows = reached([10, 40, 30, 10], Element(), Budget("units", 0.3), densities.erk, scope="row")
    for name, kept in rows.keep.items():
        grid = groups[name].grid
        assert grid is not None
        each = kept.view(grid.rows, -1).sum(1)
        assert int(each.max() - each.min()) <= 1
        assert int(kept.sum()) == int(plan.keep[name].sum())


def test_the_least_of_a_layer_comes_first() -> None:
    groups, _, plan = reached([10, 40, 30, 10], Element(), Budget("units", 0.3), densities.erk, keep_at_least=0.29)
    assert all(int(kept.sum()) >= 0.29 * kept.numel() for kept in plan.keep.values())
    assert spent(plan, "units") <= 0.3
    assert groups["0.weight"].size == 400


def test_multiples_and_ties_hold() -> None:
    _, _, plan = reached([4, 8, 12, 4], Channel(round_to=4), Budget("units", 0.6), densities.erk)
    assert all(int(kept.sum()) % 4 == 0 for kept in plan.keep.values())


def test_a_function_of_ones_own_need_not_sum_up() -> None:
    """What asks for more than 1 is dense, and the overall density rises until the budget is used."""

    def mine(groups: Groups, scores: Mapping[str, Tensor], density: float) -> Mapping[str, float]:
        return {"0.weight": 50 * density, "2.weight": density}

    groups, _, plan = reached([10, 10, 10], Element(), Budget("units", 0.6), mine)
    assert [int(kept.sum()) for kept in plan.keep.values()] == [100, 20]
    assert plan.provenance["densities"].endswith("mine")
    assert len(groups) == 2


@pytest.mark.parametrize("pattern", [Element(), Channel()], ids=repr)
def test_units_that_a_layer_no_longer_has_are_not_charged(pattern: Pattern) -> None:
    """10 and 100 left of 100 each: half of all 200 is 10 of the first and 90 of the second."""
    widths = [10, 10, 10] if isinstance(pattern, Element) else [4, 100, 100, 4]
    groups, scores = scored(tuple(widths), pattern)
    first, second = (g.name for g in groups)
    keep = {first: torch.arange(100) < 10, second: torch.ones(100, dtype=torch.bool)}
    here = groups.at(Plan(groups, keep, None))
    plan = allocate(
        here, {first: scores[first][:10], second: scores[second]}, Budget("units", 0.5), densities=densities.uniform
    )
    assert [int(plan.keep[name].sum()) for name in (first, second)] == [10, 90]


def test_options_show_in_the_provenance() -> None:
    _, _, plan = reached([4, 8, 4], Element(), Budget("units", 0.5), partial(densities.owl, outlier=7.0))
    assert plan.provenance["densities"] == "prunus.densities.owl(outlier=7.0)"
    assert "densities" not in reached([4, 8, 4], Element(), Budget("units", 0.5), None)[2].provenance


# Through the doors


def test_gradual_ends_at_the_densities() -> None:
    model = mlp([10, 40, 30, 10])
    groups, optimizer = group(model, pattern=Element()), torch.optim.SGD(model.parameters(), lr=0.01)
    gradual = prunus.Gradual(groups, criteria.magnitude, Budget("units", 0.3), steps=5, densities=densities.erk)
    with gradual.attach(model, optimizer):
        for _ in range(5):
            model(torch.randn(4, 10)).square().sum().backward()
            optimizer.step()
    shares = densities.erk(groups, {}, 0.3)
    for name, kept in gradual.plan.keep.items():
        assert int(kept.sum()) == pytest.approx(shares[name] * kept.numel(), abs=1)


@pytest.mark.parametrize("pattern", [Element(), Channel()], ids=repr)
def test_prune_takes_densities(pattern: Pattern) -> None:
    model, inputs = mlp([10, 40, 30, 10]), torch.randn(2, 10)
    options = {"budget": Budget("units", 0.5), "pattern": pattern, "keep_at_least": 0.0}
    result = prunus.prune(model, inputs, densities=densities.erk, rounds=2, **options)
    found = {name: int(kept.sum()) for name, kept in result.plan.keep.items()}
    expected = reached([10, 40, 30, 10], pattern, Budget("units", 0.5), densities.erk)[2]
    assert found == {name: int(kept.sum()) for name, kept in expected.keep.items()}
    assert result.plan.provenance["densities"] == "prunus.densities.erk"


def test_a_recipe_names_densities() -> None:
    from prunus.named import DENSITIES, densities_of

    recipe = parse({"model": "a:b", "budget": {"units": 0.5}, "densities": "erk"}, "here")
    assert densities_of(recipe.densities) is densities.erk
    assert densities_of(None) is None
    assert {densities_of(name).__name__ for name in DENSITIES} == set(DENSITIES)
    with pytest.raises(RecipeError, match=r"densities .* is 'erkk'; expected one of .* Did you mean 'erk'\?"):
        densities_of("erkk")


# Errors


def test_n_of_m_fixes_its_own_density() -> None:
    model = mlp([8, 8, 8])
    groups = group(model, pattern=NofM(2, 4))
    with pytest.raises(BudgetError, match=r"NofM\(n=2, m=4\) fixes its own density in every layer"):
        allocate(groups, score(model, groups, criteria.magnitude), densities=densities.erk)


@pytest.mark.parametrize("wrong", [None, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("pattern", [Element(), Channel()], ids=repr)
def test_a_share_that_is_none_is_refused(pattern: Pattern, wrong: float | None) -> None:
    def mine(groups: Groups, scores: Mapping[str, Tensor], density: float) -> Mapping[str, Any]:
        return {} if wrong is None else {g.name: wrong for g in groups}

    with pytest.raises(BudgetError, match=rf"mine gave {wrong} for group '0.*'; expected the share of its units"):
        reached([4, 8, 4], pattern, Budget("units", 0.5), mine)


def test_a_function_that_returns_nothing_is_refused() -> None:
    def mine(groups: Groups, scores: Mapping[str, Tensor], density: float) -> Any: ...

    with pytest.raises(BudgetError, match=r"mine returned a NoneType; expected a mapping, group name -> share"):
        reached([4, 8, 4], Element(), Budget("units", 0.5), mine)


@pytest.mark.parametrize("pattern", [Element(), Channel()], ids=repr)
def test_densities_that_do_not_fall_are_named(pattern: Pattern) -> None:
    def mine(groups: Groups, scores: Mapping[str, Tensor], density: float) -> Mapping[str, float]:
        return {g.name: 0.7 for g in groups}

    with pytest.raises(BudgetError, match=r"cannot be reached: with what densities=.*mine asks for at an overall dens"):
        reached([4, 8, 4], pattern, Budget("units", 0.5), mine)


def test_a_name_is_no_function_of_densities() -> None:
    named: Any = "erk"
    with pytest.raises(BudgetError, match=r"densities='erk'; expected a function, such as prunus.densities.erk"):
        reached([4, 8, 4], Element(), Budget("units", 0.5), named)


@pytest.mark.parametrize("pattern", [Element(), Channel()], ids=repr)
def test_a_budget_below_the_least_is_refused(pattern: Pattern) -> None:
    with pytest.raises(BudgetError, match="cannot be reached"):
        reached([4, 8, 4], pattern, Budget("units", 0.2), densities.erk, keep_at_least=0.5)
