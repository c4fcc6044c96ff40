"""What holds for every network, plan and budget: laws over random small networks."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nets import Recipe, Step, build, recipes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from units import bundles, can_be_permuted, permuted, random_plan, zeroed

from prunus.allocate import allocate
from prunus.apply.shrink import shrink
from prunus.cost import predict
from prunus.criteria import random
from prunus.errors import ArtifactError, GroupError, PlanError
from prunus.graph.group import Groups, group
from prunus.graph.trace import trace
from prunus.measure.macs import macs
from prunus.patterns import Channel
from prunus.plan import Plan, load_plan, pack, unpack
from prunus.score import score
from prunus.types import Budget, Inputs

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def laws(examples: int) -> settings:
    return settings(max_examples=examples, suppress_health_check=SLOW)


seeds = st.integers(0, 999)


def traced(recipe: Recipe, round_to: int = 1, double: bool = False) -> tuple[nn.Module, Tensor, Groups]:
    """A network, its input and its groups; skips the few in which every axis is fixed."""
    model, inputs = build(recipe)
    if double:  # before the trace: the states that a recurrent layer makes have its dtype
        model, inputs = model.double(), inputs.double() if inputs.is_floating_point() else inputs
    try:
        return model, inputs, group(trace(model, inputs), pattern=Channel(round_to=round_to))
    except GroupError:
        assume(False)
        raise


def half(model: nn.Module, groups: Groups, seed: int = 0) -> Plan:
    scores = score(model, groups, random, seed=seed)
    return allocate(groups, scores, Budget("units", at_most=0.5), scope="layer")


def some_plan(model: nn.Module, groups: Groups, seed: int) -> Plan:
    return half(model, groups, seed) if seed % 2 else random_plan(groups, seed)


def kept(plan: Plan) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in plan.keep.items()}


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(inputs)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    mine, theirs = a.state_dict(), b.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


# The groups


@laws(30)
@given(recipes(), seeds)
def test_the_units_of_a_group_can_change_places(recipe: Recipe, seed: int) -> None:
    model, inputs, groups = traced(recipe)
    model, inputs = model.double(), inputs.double() if inputs.is_floating_point() else inputs
    expected = run(model, inputs)
    for each in groups:
        order = torch.randperm(each.size, generator=torch.Generator().manual_seed(seed))
        if can_be_permuted(groups, each):
            torch.testing.assert_close(run(permuted(model, groups, each, order), inputs), expected)


# Shrinking


@pytest.mark.parametrize(("start", "examples"), [("image", 100), ("features", 40), ("ids", 60)])
def test_a_random_network_is_shrunk_and_proven_and_left_as_it_is(start: str, examples: int) -> None:
    @laws(examples)
    @given(recipes(start), seeds)
    def law(recipe: Recipe, seed: int) -> None:
        model, inputs, groups = traced(recipe)
        assert not groups.graph.unruled
        model.train(seed % 3 == 0)
        before = copy.deepcopy(model)
        plan = some_plan(model, groups, seed)
        small = shrink(model, plan)
        assert_same_state(model, before)
        assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
        assert small.training == model.training
        assert not {t.data_ptr() for t in small.state_dict().values()} & {
            t.data_ptr() for t in model.state_dict().values() if t.numel()
        }
        assert run(small, inputs).shape == run(model, inputs).shape

    law()


class Classified(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


class Sorted(nn.Module):
    """An operation without a rule, after which the batch is written down as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(4, 6), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(x).relu()) + self.first(x.sort(1).values).view(x.shape[0], 3, 2)[:, :, 0]


# Shrunk to the least once random networks, or what they led to, had broken a rule, the surgery or the proof.
MET: dict[str, tuple[nn.Module, Tensor]] = {
    "a slope for each channel": (
        nn.Sequential(nn.Conv2d(2, 6, 1), nn.PReLU(6), nn.Conv2d(6, 2, 1)),
        torch.randn(2, 2, 2, 2),
    ),
    "a norm without weights": (
        nn.Sequential(nn.Conv2d(2, 6, 1), nn.InstanceNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        torch.randn(2, 2, 3, 3),
    ),
    "an in-place chain, which cannot be trained": (
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.ReLU(inplace=True), nn.Linear(6, 2)),
        torch.randn(9, 4),
    ),
    "results that are integers": (Classified(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(9, 4)),
    "an operation without a rule": (Sorted(), torch.randn(3, 4)),
    "hardly a live unit": (nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)), torch.randn(1, 4)),
}


@pytest.mark.parametrize("name", MET)
def test_what_once_broke_is_shrunk_and_proven(name: str) -> None:
    model, inputs = MET[name]
    small = shrink(model.eval(), half(model, group(trace(model, inputs))))
    assert type(small) is type(model)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@laws(20)
@given(recipes(), seeds)
def test_shrinking_equals_zeroing_where_groups_are_exact(recipe: Recipe, seed: int) -> None:
    model, inputs, groups = traced(recipe, double=True)
    plan = random_plan(groups.only(exact=True), seed)
    assume(plan.keep)
    small = shrink(model, plan, verify=False)
    torch.testing.assert_close(run(small, inputs), run(zeroed(model, plan), inputs), rtol=1e-9, atol=1e-9)


@laws(20)
@given(recipes(), seeds)
def test_shrinking_twice_equals_shrinking_once_by_the_composed_plan(recipe: Recipe, seed: int) -> None:
    model, inputs, groups = traced(recipe)
    first = some_plan(model, groups, seed)
    once = shrink(model, first, verify=False)
    here = groups.at(first)
    second = some_plan(once, here, seed + 1)
    twice, composed = shrink(once, second), shrink(model, first.then(second))
    assert_same_state(twice, composed)
    assert torch.equal(run(twice, inputs), run(composed, inputs))
    assert kept(first.then(second)) == kept(second)


@laws(20)
@given(recipes(), seeds)
def test_a_plan_that_keeps_all_changes_nothing(recipe: Recipe, seed: int) -> None:
    model, inputs, groups = traced(recipe)
    plan = allocate(groups, score(model, groups, random, seed=seed), Budget("units", at_most=1.0))
    small = shrink(model, plan)
    assert_same_state(small, model)
    assert torch.equal(run(small, inputs), run(model, inputs))


@laws(20)
@given(recipes(), seeds)
def test_the_smaller_model_trains_where_the_original_does(recipe: Recipe, seed: int) -> None:
    model, inputs, groups = traced(recipe)
    small = shrink(model, some_plan(model, groups, seed), verify=False).train()
    try:
        F.mse_loss((y := model.train()(inputs)), torch.ones_like(y)).backward()
    except (RuntimeError, ValueError):  # in-place chains, or batch norms of one value
        assume(False)
    F.mse_loss((z := small(inputs)), torch.ones_like(z)).backward()
    whole, cut = dict(model.named_parameters()), dict(small.named_parameters())
    assert whole.keys() == cut.keys()
    for name, parameter in cut.items():
        assert (parameter.grad is None) == (whole[name].grad is None)
        assert parameter.grad is None or parameter.grad.shape == parameter.shape


@laws(20)
@given(recipes(), seeds)
def test_the_smaller_model_takes_any_batch(recipe: Recipe, seed: int) -> None:
    model, inputs, groups = traced(recipe)
    small = shrink(model, some_plan(model, groups, seed), verify=False)
    more = torch.cat([inputs, inputs.flip(0)])
    torch.testing.assert_close(run(small, more)[: len(inputs)], run(small, inputs))
    torch.testing.assert_close(run(small, inputs[:1]), run(small, inputs)[:1])


# Costs


@laws(25)
@given(recipes(), seeds)
def test_predicted_costs_are_those_of_the_models(recipe: Recipe, seed: int) -> None:
    model, _, groups = traced(recipe)
    plan = some_plan(model, groups, seed)
    small = shrink(model, plan, verify=False)
    costs = predict(groups.graph, plan.left)
    assert costs["params"] == tuple(sum(p.numel() for p in m.parameters()) for m in (model, small))
    if not any("einsum" in node.op for node in groups.graph.eval.program.nodes):  # sums of one term it multiplies out
        assert costs["macs"] == tuple(macs(m, groups.graph.inputs) for m in (model, small))


class Function(nn.Module):
    """A product of activations, said in a line."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def gqa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def by_letters(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bhqd,bhkd->bhqk", q, k)


COUNTED: dict[str, tuple[nn.Module, list[tuple[int, ...]], int]] = {
    "linear": (nn.Linear(4, 3), [(2, 4)], 2 * 4 * 3),
    "linear of tokens": (nn.Linear(4, 3), [(2, 5, 4)], 2 * 5 * 4 * 3),
    "conv1d": (nn.Conv1d(4, 6, 3), [(2, 4, 5)], 2 * 3 * 6 * 4 * 3),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), [(2, 4, 5, 5)], 2 * 9 * 6 * 2 * 9),
    "depthwise": (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), [(2, 4, 6, 6)], 2 * 9 * 8 * 9),
    "dilated": (nn.Conv2d(4, 6, (1, 3), dilation=2), [(2, 4, 5, 5)], 2 * 5 * 6 * 4 * 3),
    "conv3d": (nn.Conv3d(2, 3, 2), [(2, 2, 3, 3, 3)], 2 * 8 * 3 * 2 * 8),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), [(2, 4, 3, 3)], 2 * 4 * 9 * 3 * 4),
    "matmul": (Function(torch.matmul), [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
    "bmm": (Function(torch.bmm), [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
    "einsum": (Function(by_letters), [(2, 3, 4, 5), (2, 3, 6, 5)], 2 * 3 * 4 * 6 * 5),
    "attention": (
        Function(F.scaled_dot_product_attention),
        [(2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 7)],
        2 * 3 * 4 * 6 * (5 + 7),
    ),
    "attention of fewer keys": (Function(gqa), [(2, 4, 3, 5), (2, 2, 6, 5), (2, 2, 6, 5)], 2 * 4 * 3 * 6 * (5 + 5)),
    "norms are free": (
        nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)),
        [(2, 2, 2, 2)],
        2 * 4 * 3 * 2 + 2 * 12 * 2,
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_macs_of_a_graph_by_hand_and_by_the_counter(name: str) -> None:
    model, shapes, expected = COUNTED[name]
    inputs = Inputs(tuple(torch.randn(shape) for shape in shapes))
    assert predict(trace(model, inputs), {})["macs"] == (expected, expected)
    assert macs(model.eval(), inputs) == expected


# Allocation


def least_and_most(groups: Groups, metric: str) -> tuple[float, float]:
    """The cost with as few units of each group as may be, and of the whole model."""
    alone = {each.leaf: torch.arange(each.size) < each.least for each in groups}
    if metric == "units":
        return sum(each.least for each in groups), sum(each.size for each in groups)
    return predict(groups.graph, alone)[metric][1], predict(groups.graph, {})[metric][0]


def cost(groups: Groups, keep: Mapping[str, Tensor], metric: str) -> float:
    if metric == "units":
        return sum(int(keep[each.name].sum()) if each.name in keep else each.size for each in groups)
    return predict(groups.graph, {groups[name].leaf: mask for name, mask in keep.items()})[metric][1]


metrics = st.sampled_from(["units", "params", "macs"])
scopes = st.sampled_from(["global", "layer"])
shares = st.floats(0.0, 1.0)


def reachable(groups: Groups, metric: str, share: float) -> Budget:
    """A budget somewhere between the least that the groups allow and the whole."""
    least, most = least_and_most(groups, metric)
    return Budget(metric, at_most=max(least, least + share * (most - least)), relative=False)


@laws(40)
@given(recipes(), metrics, scopes, shares, seeds)
def test_a_budget_is_met_and_the_next_unit_would_break_it(
    recipe: Recipe, metric: str, scope: str, share: float, seed: int
) -> None:
    model, _, groups = traced(recipe)
    scores = score(model, groups, random, seed=seed)
    budget = reachable(groups, metric, share)
    plan = allocate(groups, scores, budget, scope=scope)
    assert cost(groups, plan.keep, metric) <= budget.at_most * (1 + 1e-9)
    if metric != "units":
        assert plan.costs[metric][1] == cost(groups, plan.keep, metric)
    removed = {name: ~mask for name, mask in plan.keep.items() if not bool(mask.all())}
    if not removed or any(len(names) > 1 for names in bundles(groups)):
        return
    if scope == "global":
        best = max(removed, key=lambda name: scores[name][removed[name]].max())
        more = {**plan.keep, best: plan.keep[best] | (scores[best] == scores[best][removed[best]].max())}
    else:
        share = min((int(plan.keep[name].sum()) + 1) / groups[name].size for name in removed)
        counts = {each.name: max(each.least, math.floor(share * each.size + 1e-9)) for each in groups}
        more = {name: best_of(scores[name], count) for name, count in counts.items()}
    assert cost(groups, more, metric) > budget.at_most


def best_of(scores: Tensor, count: int) -> Tensor:
    return torch.zeros(scores.numel(), dtype=torch.bool).index_fill(0, scores.topk(count).indices, True)


@laws(30)
@given(recipes(), metrics, scopes, shares, shares, seeds)
def test_a_larger_budget_keeps_every_unit_of_a_smaller_one(
    recipe: Recipe, metric: str, scope: str, one: float, other: float, seed: int
) -> None:
    model, _, groups = traced(recipe)
    scores = score(model, groups, random, seed=seed)
    small, large = (
        allocate(groups, scores, reachable(groups, metric, share), scope=scope) for share in sorted([one, other])
    )
    for name, mask in small.keep.items():
        assert not bool((mask & ~large.keep[name]).any())


@laws(30)
@given(recipes(), scopes, st.floats(0.1, 1.0), seeds)
def test_the_units_that_stay_score_no_less_than_those_that_go(
    recipe: Recipe, scope: str, share: float, seed: int
) -> None:
    model, _, groups = traced(recipe)
    scores = score(model, groups, random, seed=seed)
    plan = allocate(groups, scores, reachable(groups, "units", share), scope=scope)
    for name, mask in plan.keep.items():
        if not bool(mask.all()):
            assert scores[name][mask].min() >= scores[name][~mask].max()


@laws(30)
@given(recipes(), st.floats(0.2, 1.0), seeds)
def test_scope_layer_keeps_one_share_of_every_group(recipe: Recipe, share: float, seed: int) -> None:
    model, _, groups = traced(recipe)
    scores = score(model, groups, random, seed=seed)
    plan = allocate(groups, scores, reachable(groups, "params", share), scope="layer")
    counts = {name: (count, groups[name].size) for name, count in kept(plan).items()}
    least = max((count / size for name, (count, size) in counts.items() if count > groups[name].least), default=0.0)
    most = min((count + 1) / size for count, size in counts.values())
    assert least < most


@laws(30)
@given(recipes(), metrics, scopes, st.integers(2, 6), seeds)
def test_counts_are_multiples_of_round_to_or_whole(
    recipe: Recipe, metric: str, scope: str, round_to: int, seed: int
) -> None:
    model, _, groups = traced(recipe, round_to)
    scores = score(model, groups, random, seed=seed)
    fewest = {each.name: -(-each.least // round_to) * round_to for each in groups}
    all_first = {each.name: best_of(scores[each.name], min(fewest[each.name], each.size)) for each in groups}
    budget = Budget(metric, cost(groups, all_first, metric), relative=False)
    plan = allocate(groups, scores, budget, scope=scope)
    for name, count in kept(plan).items():
        each = groups[name]
        wide = each.width if each.kind in ("head", "kv_head", "conv_group") else 1
        assert count == each.size or count * wide % round_to == 0
    assert cost(groups, plan.keep, metric) <= budget.at_most


@laws(30)
@given(recipes(), scopes, st.sampled_from([0.07, 0.25, 0.28, 0.5, 0.55, 0.9, 1.0]), seeds)
def test_at_least_a_share_of_every_group_stays(recipe: Recipe, scope: str, share: float, seed: int) -> None:
    model, _, groups = traced(recipe)
    scores = score(model, groups, random, seed=seed)
    floors = {each.name: max(each.least, math.ceil(share * each.size - 1e-9)) for each in groups}
    budget = Budget("units", sum(floors.values()), relative=False)
    plan = allocate(groups, scores, budget, scope=scope, keep_at_least=share)
    assert kept(plan) == floors


TYING = {"ids": Step("attention", a=1, b=1, c=1), "image": Step("split")}


@laws(30)
@given(recipes("ids", "image", most=3), metrics, scopes, shares, seeds)
def test_tied_groups_keep_equally_many_units(recipe: Recipe, metric: str, scope: str, share: float, seed: int) -> None:
    model, _, groups = traced(Recipe(recipe.input, (TYING[recipe.input], *recipe.steps)))
    assume(groups.ties)  # what follows may unify the pieces, or fix them
    scores = score(model, groups, random, seed=seed)
    counts = kept(allocate(groups, scores, reachable(groups, metric, share), scope=scope))
    for tie in groups.ties:
        assert len({counts[name] for name in tie}) == 1


# Plans


@laws(15)
@given(recipes(), seeds)
def test_from_trace_to_plan_a_seed_decides_all(recipe: Recipe, seed: int) -> None:
    plans = []
    for _ in range(2):
        model, _, groups = traced(recipe)
        plans.append(half(model, groups, seed))
    a, b = plans
    assert a.graph.structure == b.graph.structure
    assert list(a.keep) == list(b.keep)
    assert all(torch.equal(mask, b.keep[name]) for name, mask in a.keep.items())
    assert a.costs == b.costs


def test_another_seed_gives_another_plan() -> None:
    model, _, groups = traced(Recipe("features", (Step("linear", a=5), Step("linear", a=5))))
    assert str(half(model, groups, 1).keep) != str(half(model, groups, 2).keep)


@laws(20)
@given(recipes(), seeds)
def test_a_saved_plan_is_the_same_plan_on_another_trace(recipe: Recipe, seed: int) -> None:
    model, inputs, groups = traced(recipe)
    first = some_plan(model, groups, seed)
    second = random_plan(groups.at(first), seed + 1)
    with TemporaryDirectory() as folder:
        first.save(folder)
        again = load_plan(folder, group(trace(model, inputs)))
        second.save(folder)
        both = load_plan(folder, group(trace(model, inputs)))
    assert_same_state(shrink(model, both, verify=False), shrink(model, first.then(second), verify=False))
    assert (again.budget, again.costs, again.provenance) == (first.budget, first.costs, first.provenance)
    assert again.keep.keys() == first.keep.keys()
    assert all(torch.equal(mask, first.keep[name]) for name, mask in again.keep.items())


@laws(100)
@given(st.lists(st.booleans(), max_size=70))
def test_bits_are_packed_and_unpacked(bits: list[bool]) -> None:
    mask = torch.tensor(bits, dtype=torch.bool)
    packed = pack(mask)
    assert packed.numel() == math.ceil(len(bits) / 8)
    assert torch.equal(unpack(packed, len(bits)), mask)
    assert int.from_bytes(bytes(packed.tolist()), "little") == sum(bit << i for i, bit in enumerate(bits))


@pytest.mark.parametrize("size", [0, 7, 8, 17])
def test_bits_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"2 bytes of torch.uint8 for {size} units"):
        unpack(torch.tensor([1, 2], dtype=torch.uint8), size)


def small_plan() -> tuple[nn.Module, Groups, Plan]:
    model, _, groups = traced(Recipe("features", (Step("linear", a=3, b=1), Step("linear", a=4, b=1))))
    return model, groups, half(model, groups)


def test_a_missing_plan_is_said(tmp_path: Path) -> None:
    _, groups, _ = small_plan()
    with pytest.raises(ArtifactError, match=r"holds no readable plan \(FileNotFoundError"):
        load_plan(tmp_path / "nowhere", groups)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("plan.json", ""),
        ("plan.json", "[]"),
        ("plan.json", '{"structure": 3}'),
        ("plan.safetensors", "damaged"),
    ],
)
def test_a_damaged_plan_is_said(tmp_path: Path, file: str, content: str) -> None:
    _, groups, plan = small_plan()
    plan.save(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ArtifactError, match="holds no readable plan"):
        load_plan(tmp_path, groups)


def test_a_plan_with_other_sizes_than_its_bits_is_damaged(tmp_path: Path) -> None:
    _, groups, plan = small_plan()
    plan.save(tmp_path)
    facts = json.loads((tmp_path / "plan.json").read_text())
    facts["sizes"] = {name: size + 40 for name, size in facts["sizes"].items()}
    (tmp_path / "plan.json").write_text(json.dumps(facts))
    with pytest.raises(ArtifactError, match="holds no readable plan"):
        load_plan(tmp_path, groups)


def test_a_saved_plan_is_refused_by_a_model_of_another_structure(tmp_path: Path) -> None:
    _, _, plan = small_plan()
    plan.save(tmp_path)
    _, _, other = traced(Recipe("features", (Step("linear", a=5, b=1),)))
    with pytest.raises(PlanError, match="another structure"):
        load_plan(tmp_path, other)


def test_a_saved_plan_binds_to_groups_that_were_skipped_too(tmp_path: Path) -> None:
    _, groups, plan = small_plan()
    plan.save(tmp_path)
    again = load_plan(tmp_path, groups.skip(next(iter(plan.keep))))
    assert kept(again) == kept(plan)


def test_a_saved_plan_of_groups_that_the_model_does_not_have(tmp_path: Path) -> None:
    _, groups, plan = small_plan()
    plan.save(tmp_path)
    facts = json.loads((tmp_path / "plan.json").read_text())
    bits = load_file(tmp_path / "plan.safetensors")
    first = next(iter(plan.keep))
    save_file(
        {"stranger" if name == first else name: tensor for name, tensor in bits.items()}, tmp_path / "plan.safetensors"
    )
    facts["sizes"] = {"stranger" if name == first else name: size for name, size in facts["sizes"].items()}
    (tmp_path / "plan.json").write_text(json.dumps(facts))
    with pytest.raises(PlanError, match="names a group that this model does not have: There is no group 'stranger'"):
        load_plan(tmp_path, groups)


def test_a_plan_that_starts_elsewhere_does_not_follow() -> None:
    model, groups, plan = small_plan()
    with pytest.raises(PlanError, match="does not start where this one ends"):
        plan.then(half(model, groups, 7))
