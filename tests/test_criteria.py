"""Criteria: each against an independent expression, and all of them through every law."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from halves import Net, draw
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import Recipe, build, recipes
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from units import can_be_permuted, permuted

import prunus
from prunus import Block, Budget, Channel, Element, NofM, Stats, allocate, criteria, group, score, trace
from prunus.criteria import Criterion, Movement
from prunus.errors import CriterionError, GroupError, PlanError
from prunus.graph.graph import Graph
from prunus.graph.groups import Groups
from prunus.patterns import Pattern
from prunus.types import Inputs

x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])


def two_layers() -> nn.Sequential:
    """W = [[1, -2], [3, 4], [0, -1]], b = [1, 0, 2]; V = [[1, -1, 2]], c = [3]."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    values = ([[1.0, -2.0], [3.0, 4.0], [0.0, -1.0]], [1.0, 0.0, 2.0], [[1.0, -1.0, 2.0]], [3.0])
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))
    return model


def squared(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def stats_of(model: nn.Module, inputs: Tensor, data: list[Tensor] | None = None, seed: int = 0) -> Stats:
    names = tuple(name for name, _ in model.named_parameters())
    return Stats(model, names, data or [inputs], squared, seed, trace(model, inputs))


def small_cnn() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    for norm in (m for m in model if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.running_mean, std=0.1)
    return model.double().eval(), torch.randn(4, 3, 8, 8, dtype=torch.float64)


class Attention(nn.Module):
    """A layer of a transformer, its three projections in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(h)).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.second(h))))


def small_transformer() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Attention(), Attention(), nn.LayerNorm(16), nn.Linear(16, 4))
    return model.double().eval(), torch.randn(4, 5, 8, dtype=torch.float64)


NETS: Mapping[str, Callable[[], tuple[nn.Sequential, Tensor]]] = {"cnn": small_cnn, "transformer": small_transformer}
CRITERIA: Mapping[str, Criterion | None] = {
    **{n: getattr(criteria, n) for n in criteria.__all__ if n.islower() and n != "needing"},
    "movement": None,
}


@cache
def traced(net: str) -> tuple[nn.Sequential, Tensor, Graph]:
    """Once for all tests: none may change the model."""
    model, inputs = NETS[net]()
    return model, inputs, trace(model, inputs)


WEIGHTED = [name for name in CRITERIA if name != "random"]  # random looks at no weight
PATTERNS: tuple[Pattern, ...] = (Channel(), Element(), NofM(2, 4), Block(1, 2))


def needs(name: str) -> frozenset[str]:
    return getattr(CRITERIA[name], "needs", frozenset())


def criterion_of(name: str, model: nn.Module, inputs: Tensor) -> Criterion:
    """Movement must have seen some training: of a copy."""
    known = CRITERIA[name]
    if known is not None:
        return known
    movement, model = Movement(), copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with movement.attach(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            squared(model, inputs).backward()
            optimizer.step()
    return movement


def reached(name: str, groups: Groups) -> Groups:
    """The groups of channels that a criterion knows of: scales of batch norms, maps that convolutions read."""
    known = {"bn_scale": ("0", "3", "6"), "hrank": ("0", "3", "6")}
    return groups.only(*known[name]) if name in known else groups


# Golden values


def test_lamp_by_hand() -> None:
    """Squares 9, 1, 4, 4; each over the sum of all that are not smaller."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -1.0], [2.0, -2.0]]))
    expected = [[9 / 9, 1 / 18], [4 / 17, 4 / 17]]
    assert criteria.lamp(Stats(model, ("weight",)))["weight"].tolist() == expected


def test_lamp_of_zeros_is_zero() -> None:
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    assert not criteria.lamp(Stats(model, ("weight",)))["weight"].any()


def test_bn_scale_is_the_scale_of_the_norm_behind_the_units() -> None:
    model, _, graph = traced("cnn")
    found = score(model, group(graph).only("6"), criteria.bn_scale)["6"]
    torch.testing.assert_close(found, model[7].weight.detach())


def test_fpgm_is_the_sum_of_the_distances_between_rows() -> None:
    """Of the weight that makes the units alone."""
    model = two_layers()
    rows = model[0].weight.tolist()
    expected = [sum(math.dist(row, other) for other in rows) for row in rows]
    assert score(model, group(trace(model, x)), criteria.fpgm)["0"].tolist() == pytest.approx(expected)


def test_fpgm_takes_the_rows_of_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 3, 2), nn.ReLU(), nn.Conv2d(3, 1, 1))
    rows = model[0].weight.detach().transpose(0, 1).flatten(1).tolist()
    expected = [sum(math.dist(row, other) for other in rows) for row in rows]
    found = score(model, group(trace(model, torch.randn(2, 3, 4, 4))), criteria.fpgm)["0"]
    assert found.tolist() == pytest.approx(expected)


def gradients_of(model: nn.Module, batch: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(squared(model, batch), list(model.parameters())))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("taylor", lambda w, a, b: ((a * w) ** 2 + (b * w) ** 2) / 2),
        ("taylor_abs", lambda w, a, b: ((a * w).abs() + (b * w).abs()) / 2),
        ("snip", lambda w, a, b: ((a + b) / 2 * w).abs()),
        ("obd", lambda w, a, b: w**2 / 2 * (a**2 + b**2) / 2),
    ],
)
def test_gradients_of_two_batches(name: str, expected: Callable[..., Tensor]) -> None:
    model = two_layers().double()
    batches = list(x.double().split(1))
    found = CRITERIA[name](stats_of(model, x.double(), batches))  # type: ignore[misc]
    each = [gradients_of(model, batch) for batch in batches]
    for (key, w), a, b in zip(model.named_parameters(), *each, strict=True):
        torch.testing.assert_close(found[key], expected(w.detach(), a, b))


def test_obs_diag_inverts_the_fisher_matrix_of_each_row() -> None:
    model, inputs = two_layers().double(), torch.randn(5, 2, dtype=torch.float64)
    found = criteria.obs_diag(stats_of(model, inputs, list(inputs.split(1))))
    each = [gradients_of(model, batch) for batch in inputs.split(1)]
    grads = torch.stack([g[0] for g in each])  # (batch, out, in)
    damping = 0.01 * grads.square().mean()
    for row, w in enumerate(model[0].weight.detach()):
        fisher = torch.stack([torch.outer(g[row], g[row]) for g in grads]).mean(0) + damping * torch.eye(2)
        torch.testing.assert_close(found["0.weight"][row], w**2 / (2 * torch.linalg.inv(fisher).diagonal()))


def test_obc_inverts_what_the_layer_reads() -> None:
    model, inputs = small_cnn()
    found = criteria.obc(stats_of(model, inputs))
    first = model[0].weight.detach()
    columns = F.unfold(inputs, 3, padding=1).transpose(1, 2).flatten(0, 1)
    gram = columns.T @ columns
    inverse = torch.linalg.inv(2 * (gram + 0.01 * gram.diagonal().mean() * torch.eye(27)))
    torch.testing.assert_close(found["0.weight"], (first.flatten(1) ** 2 / inverse.diagonal()).view_as(first))
    assert found.keys() >= {"3.weight", "6.weight", "9.weight", "12.weight"}


def test_grasp_is_the_product_with_the_hessian() -> None:
    model = two_layers().double()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    sizes = [p.shape for p in model.parameters()]

    def value(vector: Tensor) -> Tensor:
        parts = [p.view(s) for p, s in zip(vector.split([s.numel() for s in sizes]), sizes, strict=True)]
        named = dict(zip([n for n, _ in model.named_parameters()], parts, strict=True))
        return torch.func.functional_call(model, named, (x.double(),)).square().mean()

    gradient = torch.autograd.functional.jacobian(value, flat)
    expected = flat * (torch.autograd.functional.hessian(value, flat) @ gradient)  # type: ignore[operator]
    found = criteria.grasp(stats_of(model, x.double()))
    torch.testing.assert_close(torch.cat([found[n].flatten() for n, _ in model.named_parameters()]), expected)
    assert expected.min() < 0 < expected.max()


def test_synflow_by_hand() -> None:
    """R = Σ |V| (|W| 1 + |b|) + |c| for each of the two samples; the gradient at W is |V|ᵀ 1ᵀ, at V what it reads."""
    found = criteria.synflow(stats_of(two_layers(), x))
    assert found["0.weight"].tolist() == [[2 * 1 * 1, 2 * 2 * 1], [2 * 3 * 1, 2 * 4 * 1], [0, 2 * 1 * 2]]
    assert found["0.bias"].tolist() == [2 * 1 * 1, 0, 2 * 2 * 2]
    assert found["2.weight"].tolist() == [[2 * (1 + 2 + 1), 2 * (3 + 4), 2 * 2 * (1 + 2)]]
    assert found["2.bias"].tolist() == [2 * 3]


HIDDEN = F.relu(x @ torch.tensor([[1.0, -2.0], [3.0, 4.0], [0.0, -1.0]]).T + torch.tensor([1.0, 0.0, 2.0]))
V = torch.tensor([[1.0, -1.0, 2.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("activation", HIDDEN.mean(0)),
        ("apoz", (HIDDEN > 0).float().mean(0)),
        ("flap", HIDDEN.var(0, correction=0) * V[0] ** 2),
    ],
)
def test_activations_are_what_the_next_weight_reads(name: str, expected: Tensor) -> None:
    """Of one unit a value, whatever its consumers are."""
    model = two_layers()
    found = score(model, group(trace(model, x)), CRITERIA[name], data=list(x.split(1)), loss=squared)  # type: ignore[arg-type]
    torch.testing.assert_close(found["0"], expected.double())


def test_apoz_of_maps_is_the_share_over_all_positions() -> None:
    model, inputs = small_cnn()
    found = score(model, group(trace(model, inputs)), criteria.apoz, data=[inputs], loss=squared)
    maps = model[:9](inputs)
    torch.testing.assert_close(found["6"], (maps > 0).double().mean((0, 2, 3)))


def test_hrank_is_the_mean_rank_of_maps() -> None:
    model, inputs, graph = traced("cnn")
    found = score(model, group(graph).only("6"), criteria.hrank, data=[inputs], loss=squared)
    maps = model[:9](inputs).detach()
    ranks = [[float(torch.linalg.matrix_rank(each)) for each in sample] for sample in maps]
    torch.testing.assert_close(found["6"], torch.tensor(ranks, dtype=torch.float64).mean(0))


def test_wanda_by_hand() -> None:
    found = criteria.wanda(stats_of(two_layers(), x, list(x.split(1))))
    norms = torch.tensor([1.0 + 9.0, 4.0 + 1.0]).sqrt()
    torch.testing.assert_close(found["0.weight"], two_layers()[0].weight.detach().abs() * norms, check_dtype=False)
    torch.testing.assert_close(found["2.weight"], V.abs() * HIDDEN.square().sum(0).sqrt(), check_dtype=False)


def test_ria_by_hand() -> None:
    w, norms = two_layers()[0].weight.detach().abs(), torch.tensor([10.0, 5.0]).sqrt()
    expected = (w / w.sum(0) + w / w.sum(1, keepdim=True)) * norms.sqrt()
    found = criteria.ria(stats_of(two_layers(), x))["0.weight"]
    torch.testing.assert_close(found, expected, check_dtype=False)


def test_movement_adds_up_what_training_moves_away_from_zero() -> None:
    model, movement = two_layers(), Movement()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = [torch.zeros_like(p) for p in model.parameters()]
    with movement.attach(model, optimizer):
        for batch in x.split(1):
            optimizer.zero_grad()
            squared(model, batch).backward()
            for total, p in zip(expected, model.parameters(), strict=True):
                total -= 0.01 * p.grad * p.detach()
            optimizer.step()
    squared(model, x).backward()
    optimizer.step()  # after the end: not counted
    found = movement(stats_of(model, x))
    for (name, _), total in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], total)


def test_movement_goes_on_from_its_state() -> None:
    model, inputs = two_layers(), x
    whole = criterion_of("movement", model, inputs)
    again = Movement()
    again.load_state_dict(whole.state_dict())  # type: ignore[attr-defined]
    names = tuple(n for n, _ in model.named_parameters())
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole(Stats(model, names)).values(), again(Stats(model, names)).values(), strict=True)
    )


def test_movement_watches_one_training_at_a_time() -> None:
    """A second `attach` ends the first; gradients that a scaler has scaled count as they are."""
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    squared(model, x).backward()
    once, twice, scaled = Movement(), Movement(), Movement()
    for movement, attached in ((once, 1), (twice, 2), (scaled, 1)):
        for _ in range(attached):
            watch = movement.attach(model, optimizer)
        optimizer.param_groups[0]["lr"] = 0.1
        if movement is scaled:
            optimizer.grad_scale = torch.tensor(4.0)  # as a gradient scaler says to a fused optimizer
        for handle in list(optimizer._optimizer_step_pre_hooks.values()):
            handle(optimizer, (optimizer,), {})
        watch.detach()
    sums = [movement(stats_of(model, x))["0.weight"] for movement in (once, twice, scaled)]
    assert sums[0].any()
    assert torch.equal(sums[0], sums[1])
    torch.testing.assert_close(sums[0], 4 * sums[2])


def test_movement_of_another_model() -> None:
    model, other = two_layers(), two_layers()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    squared(other, x).backward()
    with Movement().attach(model, optimizer), pytest.raises(PlanError, match="another model than the one Movement was"):
        optimizer.step()


def test_a_unit_that_is_read_at_many_places_has_the_mean_of_them() -> None:
    """49 positions of a flattened map, two consumers: a share stays a share."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 2))
    inputs = torch.randn(8, 1, 7, 7)
    found = score(model, group(trace(model, inputs)), criteria.apoz, data=[inputs], loss=squared)
    torch.testing.assert_close(found["0"], (model[:2](inputs) > 0).double().mean((0, 2, 3)))
    torch.testing.assert_close(found["2"], (model[:4](inputs) > 0).double().mean((0, 2, 3)))
    for reduce in ("mean", "max", "l2"):
        other = score(model, group(trace(model, inputs)), criteria.apoz, data=[inputs], loss=squared, reduce=reduce)
        assert torch.equal(other["2"], found["2"])


@pytest.mark.parametrize("name", ["magnitude_l2", "obd", "obs_diag", "taylor", "lamp"])
def test_squares_do_not_underflow_in_half_precision(name: str) -> None:
    model = nn.Linear(4, 4, bias=False)
    nn.init.uniform_(model.weight, 1e-4, 2e-4)
    model = model.half()
    inputs = torch.randn(2, 4, dtype=torch.float16)
    loss = lambda net, batch: (batch @ net.weight.t()).float().square().mean() * 1e4  # noqa: E731
    found = CRITERIA[name](Stats(model, ("weight",), [inputs], loss))["weight"]  # type: ignore[misc]
    assert bool((found > 0).all())


def test_batches_that_do_not_reach_a_weight_count_as_zero() -> None:
    """Of the same gradients and as many zeros F is half of what it was, and so is [F⁻¹]_ii twice."""
    model, inputs = two_layers().double(), torch.randn(4, 2, dtype=torch.float64)
    some = criteria.obs_diag(stats_of(model, inputs, list(inputs.split(1))))["0.weight"]
    far = lambda net, batch: squared(net, batch) if len(batch) else net[2].bias.square().sum()  # noqa: E731
    stats = Stats(model, ("0.weight",), [*inputs.split(1), *[inputs[:0]] * 4], far)
    torch.testing.assert_close(criteria.obs_diag(stats)["0.weight"], some / 2)


def test_obs_diag_knows_rows_without_a_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 2, 2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    inputs = torch.randn(3, 3, 4, 4)
    traced_ = stats_of(model, inputs)
    bare = Stats(model, traced_.names, [inputs], squared)
    assert torch.equal(criteria.obs_diag(bare)["0.weight"], criteria.obs_diag(traced_)["0.weight"])


def test_fpgm_says_nothing_of_tables() -> None:
    """The rows of a lookup table are tokens, not units."""
    model = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    stats = Stats(model, tuple(n for n, _ in model.named_parameters()), graph=trace(model, torch.arange(6).view(2, 3)))
    assert set(criteria.fpgm(stats)) == {"1.weight", "3.weight"}


def test_synflow_follows_every_example() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.shift = nn.Linear(4, 3), nn.Linear(5, 3), torch.ones(3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x) if x.shape[1] == 4 else self.b(x)) + self.shift

    model = Either()
    graph = trace(model, [torch.randn(2, 4), torch.randn(2, 4)])
    other = replace(graph, examples=(graph.examples[0], Inputs((torch.randn(2, 5),))))
    found = criteria.synflow(Stats(model, ("a.weight", "b.weight"), graph=other))
    assert found["a.weight"].all()
    assert found["b.weight"].all()


def test_synflow_where_the_code_casts() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x.float())

    model = Cast()
    with pytest.raises(CriterionError, match="synflow runs the model in float64, which its code does not allow"):
        criteria.synflow(Stats(model, ("a.weight",), graph=trace(model, torch.randn(2, 4))))


def test_grasp_reads_the_data_twice() -> None:
    model, inputs, graph = traced("cnn")
    with pytest.raises(CriterionError, match="no batch at the second pass over them; can they be reread"):
        score(model, group(graph), criteria.grasp, data=iter([inputs]), loss=squared)


def test_a_weight_that_no_data_reach() -> None:
    model = Net(lambda self, x: self.a(x), a=nn.Linear(4, 2), unused=nn.Linear(4, 2))
    with pytest.raises(CriterionError, match=r"no saliency for 'unused.weight': most likely this weight took"):
        score(model, group(model, pattern=Element()), criteria.wanda, data=[draw(2, 4)], loss=squared)


# Every criterion


def test_the_table_holds_every_criterion() -> None:
    methods = "random magnitude lamp bn_scale fpgm taylor snip grasp synflow obd obs_diag movement "
    methods += "apoz activation hrank wanda ria flap"
    assert set(CRITERIA) == {*methods.split(), "magnitude_l2", "taylor_abs", "obc"}


def test_a_loss_without_a_second_derivative() -> None:
    def fused(model: nn.Module, batch: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return squared(model, batch)

    model, inputs, graph = traced("transformer")
    with pytest.raises(CriterionError, match=r"takes the gradient of a gradient, which torch refuses here: .*flash"):
        score(model, group(graph), criteria.grasp, data=[inputs], loss=fused)


def sensible(name: str, pattern: Pattern, net: str) -> bool:
    """Values of units serve channels alone; a transformer has no scales of batch norms and no maps."""
    return not ("units" in needs(name) and pattern != Channel()) and not (
        name in ("bn_scale", "hrank") and net != "cnn"
    )


def scopes(pattern: Pattern) -> tuple[str, ...]:
    if pattern == Channel():
        return ("global", "layer")
    return ("global",) if isinstance(pattern, NofM) else ("global", "layer", "row")


CASES = [
    (name, pattern, scope, net)
    for name, pattern, net in itertools.product(CRITERIA, PATTERNS, NETS)
    for scope in scopes(pattern)
    if sensible(name, pattern, net)
]
UNDIVIDED: Mapping[tuple[str, Pattern], tuple[str, ...]] = {
    ("cnn", NofM(2, 4)): ("0.weight", "3.weight"),
    ("cnn", Block(1, 2)): ("0.weight",),
}


@pytest.mark.parametrize(("name", "pattern", "scope", "net"), CASES, ids=str)
def test_every_criterion_with_every_pattern_and_scope(name: str, pattern: Pattern, scope: Any, net: str) -> None:
    """It chooses, the same at a second time, and the model is as it was."""
    model, inputs, graph = traced(net)
    groups = reached(name, group(graph, pattern=pattern, skip=UNDIVIDED.get((net, pattern), ())))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    criterion = criterion_of(name, model, inputs)
    first, second = (score(model, groups, criterion, data=[inputs], loss=squared, seed=3) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    plan = allocate(groups, first, None if isinstance(pattern, NofM) else Budget("units", at_most=0.5), scope=scope)
    kept = torch.cat([plan.keep[g.name] for g in groups])
    assert 0.3 <= float(kept.float().mean()) <= 0.5
    assert not model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", [n for n in CRITERIA if "units" in needs(n)])
@pytest.mark.parametrize("pattern", PATTERNS[1:], ids=str)
def test_one_value_a_unit_cannot_rank_what_is_within(name: str, pattern: Pattern) -> None:
    model, inputs, graph = traced("transformer")
    groups = group(graph, pattern=pattern)
    with pytest.raises(CriterionError, match=f"{name} has one value for each unit.* needs a value for every element"):
        score(model, groups, CRITERIA[name], data=[inputs], loss=squared)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bn_scale", "hrank"])
def test_a_criterion_that_knows_nothing_of_a_group_says_so(name: str) -> None:
    model, inputs, graph = traced("transformer")
    with pytest.raises(CriterionError, match="gave no saliency for any parameter of group"):
        score(model, group(graph), CRITERIA[name], data=[inputs], loss=squared)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [n for n in CRITERIA if needs(n) & {"gradients", "activations"}])
def test_what_a_criterion_needs_is_said_before_any_work(name: str) -> None:
    """Also by `prune`, whose first act would be to trace, and by `Gradual`, which would begin to train."""
    model, inputs, graph = traced("cnn")
    groups = reached(name, group(graph))
    what = "gradients" if "gradients" in needs(name) else "activations"
    match = f"{name}: This criterion looks at {what}: pass data=batches and loss=loss"
    for keywords in ({}, {"data": [inputs]}, {"loss": squared}):
        with pytest.raises(CriterionError, match=match):
            score(model, groups, CRITERIA[name], **keywords)  # type: ignore[arg-type]

    class Untouched(nn.Module):
        def forward(self, *_: Any) -> None:
            raise AssertionError("it was called")

    with pytest.raises(CriterionError, match=match):
        prunus.prune(Untouched(), inputs, budget=Budget("units", 0.5), criterion=CRITERIA[name])  # type: ignore[arg-type]
    with pytest.raises(CriterionError, match=match):
        prunus.Gradual(groups, CRITERIA[name], Budget("units", 0.5), steps=10)  # type: ignore[arg-type]


def test_synflow_needs_the_shapes_of_a_trace() -> None:
    model, _ = small_cnn()
    with pytest.raises(CriterionError, match=r"synflow: .*inputs of ones.*make the groups of prunus.trace"):
        score(model, group(model, pattern=Element()), criteria.synflow)


def test_movement_must_have_seen_training() -> None:
    model, _, graph = traced("cnn")
    with pytest.raises(CriterionError, match=r"Movement has seen no training of '0.weight'"):
        score(model, group(graph), Movement())
    with pytest.raises(CriterionError, match=r"was given no optimizer"):
        Movement().attach(model)


def test_an_unknown_need() -> None:
    with pytest.raises(CriterionError, match="Unknown need 'data'; expected of gradients"):
        criteria.needing("data")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("net", NETS)
def test_permuting_units_permutes_their_scores(name: str, net: str) -> None:
    if not sensible(name, Channel(), net):
        return
    model, inputs = NETS[net]()
    groups = reached(name, group(trace(model, inputs)))
    scores = score(model, groups, criterion_of(name, model, inputs), data=[inputs], loss=squared)
    for each in groups:
        if not can_be_permuted(groups, each):
            continue
        order = torch.randperm(each.size, generator=torch.Generator().manual_seed(1))
        other = permuted(model, groups, each, order)
        moved = score(other, groups, criterion_of(name, other, inputs), data=[inputs], loss=squared)
        for key, values in scores.items():
            torch.testing.assert_close(moved[key], values[order] if key == each.name else values)


EVERYWHERE = [n for n in WEIGHTED if n not in ("bn_scale", "hrank")]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_permuting_units_of_random_networks(name: str) -> None:
    @settings(max_examples=8)
    @given(recipes("image", "features", most=4), st.integers(0, 999))
    def law(recipe: Recipe, seed: int) -> None:
        model, inputs = build(recipe)
        model, inputs = model.double(), inputs.double()
        try:
            groups = group(trace(model, inputs))
            scores = score(model, groups, criterion_of(name, model, inputs), data=[inputs], loss=squared)
        except (RuntimeError, GroupError):  # an in-place chain has no gradients; all is fixed
            assume(False)
            return
        except CriterionError as error:
            assert "gave no saliency" in str(error)  # noqa: PT017 only a group that no product reads
            assume(False)
            return
        each = list(groups)[seed % len(groups)]
        assume(can_be_permuted(groups, each))
        order = torch.randperm(each.size, generator=torch.Generator().manual_seed(seed))
        other = permuted(model, groups, each, order)
        moved = score(other, groups, criterion_of(name, other, inputs), data=[inputs], loss=squared)
        for key, values in scores.items():
            torch.testing.assert_close(moved[key], values[order] if key == each.name else values)

    law()


LEAST = [n for n in WEIGHTED if n not in ("bn_scale", "hrank", "fpgm", "grasp", "movement")]


@pytest.mark.parametrize("name", LEAST)
def test_a_unit_of_zeros_scores_least(name: str) -> None:
    """Not by its distance to others (fpgm), nor where scores may be negative (grasp, movement)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        for part in (model[0].weight[3], model[0].bias[3:4], model[2].weight[:, 3]):
            part.zero_()
    scores = score(model, group(trace(model, x)), CRITERIA[name], data=[x], loss=squared)["0"]  # type: ignore[arg-type]
    assert scores[3] == 0
    assert scores.argmin() == 3
