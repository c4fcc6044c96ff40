"""Criteria, the reduction of saliencies to scores, and what is said where scores, budgets and plans do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import Recipe, build, recipes
from torch import Tensor, nn
from units import random_plan, slices

from prunus import criteria
from prunus.allocate import allocate
from prunus.apply.shrink import shrink
from prunus.criteria import Criterion
from prunus.errors import BudgetError, CriterionError, GroupError, PlanError
from prunus.graph.group import Groups, group
from prunus.graph.trace import trace
from prunus.patterns import Channel
from prunus.plan import Plan
from prunus.score import score
from prunus.stats import Stats
from prunus.types import Budget

x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])


def two_layers() -> nn.Sequential:
    """W = [[1, -2], [3, 4], [0, -1]], b = [1, 0, 2]; V = [[1, -1, 2]], c = [3]."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Identity(), nn.Linear(3, 1))
    values = ([[1.0, -2.0], [3.0, 4.0], [0.0, -1.0]], [1.0, 0.0, 2.0], [[1.0, -1.0, 2.0]], [3.0])
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))
    return model


def groups_of(model: nn.Module, inputs: Any = x, pattern: Channel | None = None) -> Groups:
    return group(trace(model, inputs), pattern=pattern)


def mean_output(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).float().mean()


# Golden values


def test_magnitude_is_the_sum_of_absolute_values_a_unit_owns() -> None:
    model = two_layers()
    scores = score(model, groups_of(model), criteria.magnitude)
    assert scores["0"].tolist() == [1 + 2 + 1 + 1, 3 + 4 + 0 + 1, 0 + 1 + 2 + 2]


def test_magnitude_l2_is_the_sum_of_squares() -> None:
    model = two_layers()
    scores = score(model, groups_of(model), criteria.magnitude_l2)
    assert scores["0"].tolist() == [1 + 4 + 1 + 1, 9 + 16 + 0 + 1, 0 + 1 + 4 + 4]


def test_taylor_by_hand() -> None:
    """For y = V (W x + b) + c, a batch of one and the loss y: dy/dW = Vᵀ xᵀ, dy/db = Vᵀ, dy/dV = (W x + b)ᵀ."""
    model = two_layers()
    scores = score(model, groups_of(model), criteria.taylor, data=[x[:1]], loss=mean_output)
    hidden = [1 - 4 + 1, 3 + 8 + 0, 0 - 2 + 2]  # W (1, 2) + b
    by_hand = [
        (1 * 1 * 1) ** 2 + (1 * 2 * -2) ** 2 + (1 * 1) ** 2 + (hidden[0] * 1) ** 2,
        (-1 * 1 * 3) ** 2 + (-1 * 2 * 4) ** 2 + (-1 * 0) ** 2 + (hidden[1] * -1) ** 2,
        (2 * 1 * 0) ** 2 + (2 * 2 * -1) ** 2 + (2 * 2) ** 2 + (hidden[2] * 2) ** 2,
    ]
    assert scores["0"].tolist() == by_hand == [22, 194, 32]


def test_taylor_is_the_mean_over_batches_of_squares_not_the_square_of_the_mean() -> None:
    model, (first, second) = two_layers(), x.split(1)
    groups = groups_of(model)
    each = [score(model, groups, criteria.taylor, data=[b], loss=mean_output)["0"] for b in (first, second)]
    both = score(model, groups, criteria.taylor, data=[first, second], loss=mean_output)["0"]
    assert torch.equal(both, (each[0] + each[1]) / 2)
    assert not torch.equal(both, score(model, groups, criteria.taylor, data=[x], loss=mean_output)["0"])


def test_taylor_equals_autograd_written_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    images, labels = torch.randn(5, 2, 4, 4), torch.randint(0, 3, (5,))
    loss = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    scores = score(model, groups_of(model, images), criteria.taylor, data=[(images, labels)], loss=loss)
    loss(model, (images, labels)).backward()
    conv, norm, _, _, head = model
    parts = [
        (conv.weight * conv.weight.grad).square().sum((1, 2, 3)),
        (conv.bias * conv.bias.grad).square(),
        (norm.weight * norm.weight.grad).square(),
        (norm.bias * norm.bias.grad).square(),
        (head.weight * head.weight.grad).square().view(3, 4, 4).sum((0, 2)),
    ]
    torch.testing.assert_close(scores["0"], torch.stack(parts).sum(0).double())


def test_taylor_leaves_gradients_modes_and_statistics_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).train()
    before = model[1].running_mean.clone()
    score(model, groups_of(model), criteria.taylor, data=[x], loss=mean_output)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model[1].running_mean, before)


def test_random_is_uniform_and_follows_the_seed() -> None:
    model = two_layers()
    values = torch.cat([v.flatten() for v in criteria.random(Stats(nn.Linear(100, 100), ("weight",))).values()])
    assert 0 <= values.min() < values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    groups = groups_of(model)
    one, same, other = (score(model, groups, criteria.random, seed=seed)["0"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_gradients_are_the_mean_over_batches() -> None:
    model = two_layers()
    stats = Stats(model, ("0.weight", "2.bias"), x.split(1), mean_output)
    assert stats.grads["2.bias"].tolist() == [1.0]
    assert stats.grads["0.weight"].tolist() == [[2.0, 0.5], [-2.0, -0.5], [4.0, 1.0]]  # Vᵀ times the mean of x
    assert set(stats.weights) == {"0.weight", "2.bias"}


# Reduction


def traced(recipe: Recipe) -> tuple[nn.Module, Groups]:
    model, inputs = build(recipe)
    try:
        return model, group(trace(model, inputs))
    except GroupError:
        assume(False)
        raise


def numbered(stats: Stats) -> Mapping[str, Tensor]:
    """Some saliency, another one at each element."""
    draw = torch.Generator().manual_seed(5)
    return {name: torch.rand(w.shape, generator=draw) for name, w in stats.weights.items()}


def owned(groups: Groups, name: str, unit: int, saliency: Mapping[str, Tensor]) -> Tensor:
    """Every element a unit owns, once a tensor and dimension."""
    each = groups[name]
    parts = [
        saliency[state].index_select(dim, rows[unit]).flatten()
        for state in dict.fromkeys(m.state for m in each.members if m.state in saliency)
        for dim, rows in slices(groups, each, state)
    ]
    return torch.cat(parts).double()


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": torch.sum,
    "mean": torch.mean,
    "l2": torch.linalg.vector_norm,
    "max": torch.max,
}


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_a_score_is_the_reduction_of_all_that_the_unit_owns(reduce: Any) -> None:
    @settings(max_examples=15)
    @given(recipes(), st.integers(0, 999))
    def law(recipe: Recipe, seed: int) -> None:
        model, groups = traced(recipe)
        if seed % 2:
            plan = random_plan(groups, seed)
            model, groups = shrink(model, plan, verify=False), groups.at(plan)
        scores = score(model, groups, numbered, reduce=reduce)
        saliency = numbered(Stats(model, tuple(n for n in groups.graph.state if n in groups.graph.parameters)))
        for each in groups:
            expected = [
                REDUCTIONS[reduce](owned(groups, each.name, unit, saliency)).item()
                for unit in range(int(groups.left(each).sum()))
            ]
            assert scores[each.name].tolist() == pytest.approx(expected)

    law()


def test_reductions_by_hand() -> None:
    model = two_layers()
    groups = groups_of(model)
    by_hand = {
        "sum": [5.0, 8.0, 5.0],
        "mean": [5 / 4, 8 / 4, 5 / 4],
        "l2": [math.sqrt(7), math.sqrt(26), 3.0],
        "max": [2.0, 4.0, 2.0],
    }
    for reduce, expected in by_hand.items():
        scores = score(model, groups, criteria.magnitude, reduce=reduce)  # type: ignore[arg-type]
        assert scores["0"].tolist() == pytest.approx(expected)


def test_a_tensor_that_a_unit_owns_along_two_dimensions_counts_along_both() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [4.0, 8.0]]))
    model = nn.Sequential(nn.Linear(2, 2, bias=False), layer, nn.ReLU(), layer, nn.Linear(2, 1))
    only_shared = lambda stats: {"1.weight": stats.weights["1.weight"]}  # noqa: E731
    scores = score(model, groups_of(model), only_shared)
    assert [values.tolist() for values in scores.values()] == [[1 + 2 + 1 + 4, 4 + 8 + 2 + 8]]


def test_one_value_a_unit_serves_too() -> None:
    """A saliency that broadcasts to its parameter counts at each element."""
    model = two_layers()
    narrow = lambda stats: {"0.weight": torch.tensor([[1.0], [2.0], [3.0]])}  # noqa: E731
    assert score(model, groups_of(model), narrow)["0"].tolist() == [2, 4, 6]
    assert score(model, groups_of(model), narrow, reduce="mean")["0"].tolist() == [1, 2, 3]


# Errors of score


def refused(criterion: Criterion, error: type[Exception], match: str, **keywords: Any) -> None:
    model = two_layers()
    with pytest.raises(error, match=match):
        score(model, groups_of(model), criterion, **keywords)


def wrong(**values: Tensor) -> Criterion:
    def mine(stats: Stats) -> Mapping[str, Tensor]:
        return {name.replace("_", "."): value for name, value in values.items()}

    return mine


def test_an_unknown_reduce() -> None:
    refused(
        criteria.magnitude,
        CriterionError,
        "Unknown reduce='average'; expected one of sum, mean, l2, max",
        reduce="average",
    )


def test_a_criterion_that_names_no_parameter() -> None:
    refused(wrong(**{"0_weigth": torch.ones(3, 2)}), CriterionError, "Criterion 'mine' returned '0.weigth'.*'0.weight'")


def test_a_criterion_whose_shape_does_not_fit() -> None:
    refused(
        wrong(**{"0_weight": torch.ones(2, 3)}),
        CriterionError,
        r"'mine' returned shape \(2, 3\) for '0.weight', which does not broadcast to the parameter's \(3, 2\)",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_criterion_that_is_not_finite(value: float) -> None:
    bad = torch.ones(3, 2)
    bad[1, 1] = value
    refused(wrong(**{"0_weight": bad}), CriterionError, "'mine' returned values for '0.weight' that are not finite")


def test_opposite_infinities_do_not_hide_each_other() -> None:
    bad = torch.tensor([float("inf"), -float("inf"), 1.0])
    refused(wrong(**{"0_bias": bad}), CriterionError, "'0.bias' that are not finite")


def test_a_criterion_that_leaves_a_group_out() -> None:
    refused(
        wrong(**{"2_bias": torch.ones(1)}),
        CriterionError,
        "gave no saliency for any parameter of group '0' .0.weight, 0.bias, 2.weight.",
    )


def test_gradients_without_data() -> None:
    refused(criteria.taylor, CriterionError, "pass data=batches and loss=loss", loss=mean_output)


def test_gradients_without_a_loss() -> None:
    refused(criteria.taylor, CriterionError, "pass data=batches and loss=loss", data=[x])


def test_gradients_of_no_batch() -> None:
    refused(criteria.taylor, CriterionError, "The data gave no batch", data=[], loss=mean_output)


def test_a_loss_that_is_no_scalar() -> None:
    refused(
        criteria.taylor,
        CriterionError,
        r"gave \[.*\] of shape \(2, 1\); expected one finite number",
        data=[x],
        loss=lambda model, batch: model(batch),
    )


def test_a_loss_that_is_not_finite() -> None:
    refused(
        criteria.taylor,
        CriterionError,
        r"gave \[nan\]",
        data=[x],
        loss=lambda model, batch: model(batch).mean() * float("nan"),
    )


def test_a_loss_that_is_no_tensor() -> None:
    refused(
        criteria.taylor,
        CriterionError,
        "gave 3.0; expected a tensor",
        data=[x],
        loss=lambda model, batch: 3.0,
    )


def test_a_loss_that_knows_no_weight() -> None:
    refused(
        criteria.taylor,
        CriterionError,
        "does not depend on any parameter",
        data=[x],
        loss=lambda model, batch: model(batch).detach().mean(),
    )


def test_a_model_at_other_widths() -> None:
    model = two_layers()
    groups = groups_of(model)
    small = shrink(model, allocate(groups, score(model, groups, criteria.magnitude), Budget("units", 0.4)))
    with pytest.raises(PlanError, match=r"Sequential has '0.weight' of shape \(1, 2\), but the groups speak of .*3, 2"):
        score(small, groups, criteria.magnitude)


def test_a_model_without_a_state_tensor() -> None:
    model = two_layers()
    groups = groups_of(model)
    model[2].register_parameter("bias", None)
    with pytest.raises(PlanError, match=r"Sequential has '2.bias' of shape None"):
        score(model, groups, criteria.magnitude)


# Errors of groups


def test_nothing_can_be_pruned() -> None:
    with pytest.raises(
        GroupError, match=r"Nothing in this Linear can be pruned; every axis is fixed:\n.*weight.0.: an output"
    ):
        group(trace(nn.Linear(2, 3), x))


def test_channels_need_a_graph() -> None:
    with pytest.raises(GroupError, match="Channels of a Linear cannot be found without its graph"):
        group(nn.Linear(2, 3))


def test_an_unknown_glob() -> None:
    with pytest.raises(GroupError, match=r"No group matches 'head.\*'.* such as '0'"):
        groups_of(two_layers()).skip("head.*")


def test_an_unknown_group() -> None:
    with pytest.raises(GroupError, match="There is no group 'head'; print the groups"):
        groups_of(two_layers())["head"]


def test_round_to_must_be_positive() -> None:
    with pytest.raises(GroupError, match=r"Channel\(round_to=0\) needs positive integers; 8 or 16"):
        Channel(round_to=0)


def test_a_plan_of_another_structure_restricts_no_groups() -> None:
    plan = plan_for(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 1)))
    with pytest.raises(GroupError, match="another structure"):
        groups_of(two_layers()).at(plan)


def test_a_plan_of_another_trace_restricts_no_groups() -> None:
    plan = plan_for(two_layers())
    with pytest.raises(GroupError, match="made on another trace of this model"):
        groups_of(two_layers()).at(plan)


# Errors of allocate


def plan_for(model: nn.Module, **keywords: Any) -> Plan:
    groups = groups_of(model)
    return allocate(groups, score(model, groups, criteria.magnitude), Budget("units", 0.7), **keywords)


def unallocated(scores: Mapping[str, Tensor], error: type[Exception], match: str, **keywords: Any) -> None:
    groups = groups_of(two_layers())
    with pytest.raises(error, match=match):
        allocate(groups, scores, **{"budget": Budget("units", 0.7), **keywords})


def test_scores_that_miss_a_group() -> None:
    unallocated({}, CriterionError, r"scores of group '0' are missing; expected shape \(3,\)")


def test_scores_of_another_shape() -> None:
    unallocated({"0": torch.ones(2)}, CriterionError, r"scores of group '0' are of shape \(2,\); expected shape \(3,\)")


def test_scores_that_are_not_finite() -> None:
    unallocated({"0": torch.tensor([1.0, float("nan"), 2.0])}, CriterionError, "scores of group '0' are not all finite")


def test_an_unknown_scope() -> None:
    unallocated(
        {"0": torch.ones(3)}, BudgetError, "Unknown scope 'network'; expected one of global, layer", scope="network"
    )


def test_no_budget() -> None:
    unallocated(
        {"0": torch.ones(3)}, BudgetError, r"Channel\(round_to=1\) needs a budget, such as prunus.Budget", budget=None
    )


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_to_keep_outside_its_range(share: float) -> None:
    unallocated({"0": torch.ones(3)}, BudgetError, "is a share of each group; expected 0 to 1", keep_at_least=share)


def test_no_group_left_after_skip() -> None:
    model = two_layers()
    groups = groups_of(model).skip("0")
    assert score(model, groups, criteria.magnitude) == {}
    with pytest.raises(GroupError, match="There is no group left to prune"):
        allocate(groups, {}, Budget("units", 0.5))


@pytest.mark.parametrize("at_most", [0.0, -0.5, 1.5, float("nan")])
def test_a_relative_budget_outside_its_range(at_most: float) -> None:
    with pytest.raises(BudgetError, match=r"is outside \(0, 1\].*relative=False"):
        Budget("macs", at_most=at_most)


@pytest.mark.parametrize("at_most", [0, -3])
def test_an_absolute_budget_must_be_positive(at_most: int) -> None:
    with pytest.raises(BudgetError, match="must be positive"):
        Budget("macs", at_most=at_most, relative=False)


def test_an_unknown_metric() -> None:
    with pytest.raises(BudgetError, match=r"Unknown budget metric 'parms'.* Did you mean 'params'?"):
        Budget("parms", at_most=0.5)


def test_a_budget_out_of_reach_says_how_near_it_came() -> None:
    """One unit of three at least: 2 + 1 + 1 + 1 = 5 of 13 parameters."""
    unallocated(
        {"0": torch.ones(3)},
        BudgetError,
        r"Budget\('params', at most 0.1\) cannot be reached.* 5 of 13 params are left \(0.385\). Ask for at most 0.385",
        budget=Budget("params", 0.1),
    )


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_what_an_unreachable_budget_advises_can_be_reached(scope: Any) -> None:
    model = two_layers()
    groups = groups_of(model)
    scores = score(model, groups, criteria.magnitude)
    assert allocate(groups, scores, Budget("params", 0.385), scope=scope).costs["params"] == (13, 5)


# Errors of plans


def test_a_plan_that_removes_every_unit() -> None:
    with pytest.raises(PlanError, match="removes every unit of '0', which would cut the model in two"):
        Plan(groups_of(two_layers()), {"0": torch.zeros(3, dtype=torch.bool)})


def test_a_plan_that_removes_what_an_earlier_one_left() -> None:
    plan = plan_for(two_layers())
    with pytest.raises(PlanError, match="removes every unit of '0'"):
        Plan(plan.groups.at(plan), {"0": ~plan.keep["0"]})


@pytest.mark.parametrize("mask", [torch.ones(3), torch.ones(2, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool)])
def test_a_plan_with_a_mask_of_another_kind(mask: Tensor) -> None:
    with pytest.raises(PlanError, match=r"expected \(3,\) torch.bool: one entry for each unit of the traced model"):
        Plan(groups_of(two_layers()), {"0": mask})


def test_a_plan_for_an_unknown_group() -> None:
    with pytest.raises(GroupError, match="There is no group '1'"):
        Plan(groups_of(two_layers()), {"1": torch.ones(3, dtype=torch.bool)})


def test_plans_of_different_structure_are_not_composed() -> None:
    other = plan_for(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 1)))
    with pytest.raises(PlanError, match="following plan was made for a model of another structure"):
        plan_for(two_layers()).then(other)


def test_plans_of_two_traces_are_not_composed() -> None:
    with pytest.raises(PlanError, match=r"following plan was made on another trace .* make it with groups.at\(plan\)"):
        plan_for(two_layers()).then(plan_for(two_layers()))


def test_shrinking_a_model_at_other_widths() -> None:
    model = two_layers()
    plan = plan_for(model)
    small = shrink(model, plan)
    with pytest.raises(PlanError, match=r"After a shrink use groups.at"):
        shrink(small, plan)
