"""Plans of many rounds without training, and what can be done with scores."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import Recipe, build, recipes
from torch import nn

from prunus import Block, Budget, Channel, Element, NofM, allocate, criteria, group, plan_iteratively, score, trace
from prunus.apply.mask import masked
from prunus.errors import BudgetError, CriterionError, GroupError
from prunus.scores import normalized, rank_mean, weighted_sum


@settings(max_examples=20)
@given(recipes("image", "features", most=4), st.sampled_from([Channel(), Element(), Block(1, 1)]), st.integers(1, 6))
def test_the_budget_is_met_as_allocate_would(recipe: Recipe, pattern: Any, rounds: int) -> None:
    """One round is `score` and `allocate`; more end with as many units, and the model is as it was."""
    model, inputs = build(recipe)
    try:
        groups = group(trace(model, inputs), pattern=pattern)
    except GroupError:
        assume(False)
        return
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    budget = Budget("units", at_most=0.6)
    once = allocate(groups, score(model, groups, criteria.magnitude), budget)
    plan = plan_iteratively(model, groups, criteria.magnitude, budget, rounds=rounds)
    if rounds == 1:
        assert all(torch.equal(plan.keep[g.name], once.keep[g.name]) for g in groups)
    kept, every = (sum(int(v.sum()) for v in plan.keep.values()), sum(g.size for g in groups))
    least = sum(int(v.sum()) for v in once.keep.values())
    assert kept <= max(0.6 * every, least)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_rounds_score_what_is_left() -> None:
    """A weight that depends on another which went goes too: of each pair of paths one stays whole."""
    seen: list[int] = []

    def watched(stats: Any) -> Any:
        seen.append(int(sum((w != 0).sum() for w in stats.weights.values())))
        return criteria.magnitude(stats)

    model = nn.Linear(10, 10, bias=False)
    nn.init.uniform_(model.weight, 1, 2)
    plan_iteratively(model, group(model, pattern=Element()), watched, Budget("units", 0.16), rounds=2)
    assert seen == [100, 40]  # by the same factor each round


@pytest.mark.parametrize("relative", [True, False])
def test_what_is_kept_falls_by_the_same_factor(relative: bool) -> None:
    model = nn.Linear(10, 10, bias=False)
    groups = group(model, pattern=Element())
    told: list[int] = []

    def counted(stats: Any) -> Any:
        told.append(int((stats.weights["weight"] != 0).sum()))
        return criteria.magnitude(stats)

    budget = Budget("units", 0.01) if relative else Budget("units", 1, relative=False)
    plan_iteratively(model, groups, counted, budget, rounds=4)
    assert told == [100, 31, 10, 3]


def chain(*widths: int) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b, bias=False), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def flow_through(model: nn.Module) -> float:
    """What reaches the outputs if all weights are positive."""
    x = torch.ones(1, model[0].in_features)
    for layer in (m for m in model if isinstance(m, nn.Linear)):
        x = x @ layer.weight.detach().abs().T
    return float(x.sum())


def test_synflow_in_rounds_leaves_a_way_through_where_one_shot_and_magnitude_do_not() -> None:
    """Twelve weights of a thousand, six layers: two for each."""
    model = chain(4, 16, 16, 24, 16, 6)
    groups = group(trace(model, torch.randn(2, 4)), pattern=Element())
    budget = Budget("units", at_most=0.012)
    rounds = plan_iteratively(model, groups, criteria.synflow, budget, rounds=100)
    shot = plan_iteratively(model, groups, criteria.synflow, budget, rounds=1)
    large = plan_iteratively(model, groups, criteria.magnitude, budget, rounds=100)
    assert flow_through(masked(model, rounds)) > 0
    assert flow_through(masked(model, shot)) == flow_through(masked(model, large)) == 0


def test_synflow_is_conserved_from_layer_to_layer() -> None:
    """The scores of each layer without biases sum up to R. Tanaka et al. 2020, theorem 2."""
    model = chain(4, 16, 8, 6)
    groups = group(trace(model, torch.randn(2, 4)), pattern=Element())
    sums = [float(values.sum()) for values in score(model, groups, criteria.synflow).values()]
    assert sums == pytest.approx([2 * flow_through(model)] * 3)  # a batch of two


def test_random_rounds_do_not_repeat_themselves() -> None:
    model = nn.Linear(10, 10)
    groups = group(model, pattern=Element())
    one, same, other = (
        plan_iteratively(model, groups, criteria.random, Budget("units", 0.5), rounds=3, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.keep["weight"], same.keep["weight"])
    assert not torch.equal(one.keep["weight"], other.keep["weight"])


def test_densities_hold_in_rounds() -> None:
    model = nn.Sequential(nn.Linear(20, 10, bias=False), nn.Linear(10, 5, bias=False))
    ends = lambda groups, scores, density: {"0.weight": density / 2, "1.weight": density}  # noqa: E731
    groups = group(model, pattern=Element())
    plan = plan_iteratively(model, groups, criteria.magnitude, Budget("units", 0.3), rounds=3, densities=ends)
    shares = [float(plan.keep[name].float().mean()) for name in ("0.weight", "1.weight")]
    assert shares[0] == pytest.approx(shares[1] / 2, abs=0.02)
    assert int(sum(v.sum() for v in plan.keep.values())) <= 75


def test_no_rounds() -> None:
    with pytest.raises(BudgetError, match="rounds=0; expected at least 1"):
        plan_iteratively(
            nn.Linear(4, 4),
            group(nn.Linear(4, 4), pattern=Element()),
            criteria.magnitude,
            Budget("units", 0.5),
            rounds=0,
        )


def test_cells_have_one_round() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(BudgetError, match=r"NofM\(n=2, m=4\) is reached in one round: use score and allocate"):
        plan_iteratively(model, group(model, pattern=NofM(2, 4)), criteria.magnitude, Budget("units", 0.5))


# Scores

VALUES = {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([2.0, 2.0, 4.0]), "zero": torch.zeros(2)}


@pytest.mark.parametrize(
    ("by", "a", "b"),
    [
        ("mean", [1.5, -0.5], [0.75, 0.75, 1.5]),
        ("max", [1, -1 / 3], [0.5, 0.5, 1]),
        ("sum", [0.75, -0.25], [0.25, 0.25, 0.5]),
        ("l2", [3 / 10**0.5, -1 / 10**0.5], [2 / 24**0.5, 2 / 24**0.5, 4 / 24**0.5]),
        ("standard", [1, -1], [-(0.5**0.5), -(0.5**0.5), 2**0.5]),
        ("rank", [1, 0], [0.25, 0.25, 1]),
    ],
)
def test_normalized_by_hand(by: Any, a: list[float], b: list[float]) -> None:
    found = normalized(VALUES, by)
    assert found["a"].tolist() == pytest.approx(a)
    assert found["b"].tolist() == pytest.approx(b)
    assert found["zero"].isfinite().all()


def test_sums_and_ranks_by_hand() -> None:
    other = {name: -values for name, values in VALUES.items()}
    assert all(not values.any() for values in weighted_sum((1.0, VALUES), (1.0, other)).values())
    assert weighted_sum((2.0, VALUES), (-1.0, VALUES))["a"].tolist() == [3, -1]
    ranked = rank_mean(VALUES)  # -1, 0, 0, 2, 2, 3, 4
    assert {name: [round(6 * r, 1) for r in values.tolist()] for name, values in ranked.items()} == {
        "a": [5, 0],
        "b": [3.5, 3.5, 6],
        "zero": [1.5, 1.5],
    }
    assert all((v == 0.5).all() for v in rank_mean(VALUES, other).values())


@given(st.integers(0, 999))
def test_ranks_know_no_scale(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    one, other = ({"a": torch.randn(5, generator=draw), "b": torch.randn(3, generator=draw)} for _ in range(2))
    stretched = {name: 7 * values.double().exp() for name, values in other.items()}
    found, again = rank_mean(one, other), rank_mean(one, stretched)
    assert all(torch.allclose(found[name], again[name]) for name in one)


def test_an_unknown_scale() -> None:
    with pytest.raises(CriterionError, match="Unknown by='median'; expected one of mean, max, sum, l2, standard, rank"):
        normalized(VALUES, "median")  # type: ignore[arg-type]


def test_scores_of_other_groups_do_not_combine() -> None:
    with pytest.raises(CriterionError, match=r"Scores of 'zero' are of shape \(2,\) and None; expected scores of the"):
        rank_mean(VALUES, {name: v for name, v in VALUES.items() if name != "zero"})
    with pytest.raises(CriterionError, match="There are no scores to combine"):
        weighted_sum()
