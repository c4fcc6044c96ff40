"""Elements, N:M and blocks within tensors: where units lie, which stay, what they cost, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Conv1D
from torch import Tensor, nn
from torch.nn.utils import parametrizations as P
from torch.nn.utils import weight_norm  # pyright: ignore[reportDeprecated]

import prunus
from prunus import Block, Budget, Element, Groups, NofM, Plan, allocate, criteria, group, load_plan, score, trace
from prunus.allocate.within import top
from prunus.errors import BudgetError, CriterionError, GroupError, PlanError
from prunus.graph.grid import Grid
from prunus.patterns import Laid, block_of

CELLS = [NofM(2, 4), NofM(1, 4)]
BLOCKS = [Block(4, 1), Block(1, 4), Block(1, 2)]
REDUCTIONS: dict[str, Callable[[Any], Any]] = {"sum": np.sum, "mean": np.mean, "max": np.max, "l2": np.linalg.norm}
seeds = st.integers(0, 999)


# Layers: one weight each, and where its (output, input, kernel place) lies


class Layer(NamedTuple):
    module: nn.Module
    outputs: int
    inputs: int
    kernel: tuple[int, ...]
    turned: bool
    """Is the weight (in, out, ...)?"""

    def at(self, o: int, i: int, k: tuple[int, ...]) -> tuple[int, ...]:
        return (i, o, *k) if self.turned else (o, i, *k)

    @property
    def weight(self) -> Tensor:
        return next(p for n, p in self.module.named_parameters() if n == "weight").detach()

    def blocks(self, rows: int, cols: int) -> Iterator[list[tuple[int, ...]]]:
        """The places of each unit, in the order of the units."""
        for o, i in product(range(0, self.outputs, rows), range(0, self.inputs, cols)):
            for k in product(*map(range, self.kernel)):
                yield [self.at(o + r, i + c, k) for r in range(rows) for c in range(cols)]


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Linear, Conv1D, Conv1-3d and ConvTranspose1-3d, perhaps in groups; distinct weights in double precision."""
    kind = draw(st.sampled_from(["Linear", "Conv1D", "Conv", "ConvTranspose"]))
    outs, ins, parts = 4 * draw(st.integers(1, 2)), 4 * draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)))
    torch.manual_seed(draw(seeds))
    if kind == "Linear":
        made = Layer(nn.Linear(ins, outs), outs, ins, (), False)
    elif kind == "Conv1D":
        made = Layer(Conv1D(ins, outs), outs, ins, (), True)
    else:
        module = getattr(nn, f"{kind}{len(kernel)}d")(ins * parts, outs * parts, kernel, groups=parts)
        turned = kind == "ConvTranspose"
        outs, ins = (outs, ins * parts) if turned else (outs * parts, ins)
        made = Layer(module, outs, ins, kernel, turned)
    return made._replace(module=made.module.double())


def zeros_of(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """What `mask` zeroes in the weights of a copy."""
    model = copy.deepcopy(model)
    prunus.mask(model, plan).detach()
    return {name: p.detach() == 0 for name, p in model.named_parameters()}


def sized(values: Tensor | np.ndarray) -> np.ndarray:
    return np.abs(np.asarray(values))


# Where units lie, and which stay


@pytest.mark.parametrize("pattern", CELLS)
def test_the_best_of_consecutive_inputs_stay(pattern: NofM) -> None:
    @settings(max_examples=25)
    @given(layers())
    def law(layer: Layer) -> None:
        gone = np.zeros(layer.weight.shape, dtype=bool)
        for o, k in product(range(layer.outputs), product(*map(range, layer.kernel))):
            for first in range(0, layer.inputs, pattern.m):
                cell = [layer.at(o, i, k) for i in range(first, first + pattern.m)]
                cell.sort(key=lambda place: abs(layer.weight[place].item()))
                for place in cell[: pattern.m - pattern.n]:
                    gone[place] = True
        groups = group(layer.module, pattern=pattern)
        plan = allocate(groups, score(layer.module, groups, criteria.magnitude))
        assert np.array_equal(zeros_of(layer.module, plan)["weight"].numpy(), gone)
        assert plan.keep["weight"].float().mean() == pattern.n / pattern.m

    law()


@pytest.mark.parametrize("pattern", BLOCKS)
def test_the_best_blocks_stay(pattern: Block) -> None:
    @settings(max_examples=25)
    @given(layers(), st.sampled_from([*REDUCTIONS]), st.floats(0.1, 1.0))
    def law(layer: Layer, reduce: Any, share: float) -> None:
        blocks = list(layer.blocks(pattern.rows, pattern.cols))
        values = [REDUCTIONS[reduce](sized([layer.weight[p].item() for p in block])) for block in blocks]
        count = max(1, int(share * len(blocks) + 1e-9))
        gone = np.zeros(layer.weight.shape, dtype=bool)
        for unit in np.argsort(values)[: len(blocks) - count]:
            for place in blocks[unit]:
                gone[place] = True
        groups = group(layer.module, pattern=pattern)
        scores = score(layer.module, groups, criteria.magnitude, reduce=reduce)
        plan = allocate(groups, scores, Budget("units", max(1, share * len(blocks)), relative=False))
        assert scores["weight"].tolist() == pytest.approx(values)
        assert np.array_equal(zeros_of(layer.module, plan)["weight"].numpy(), gone)

    law()


@settings(max_examples=25)
@given(layers(), st.sampled_from([(1, 1), (4, 1), (1, 4), (1, 2), (2, 2)]))
def test_units_are_numbered_by_block_of_outputs_block_of_inputs_and_place(layer: Layer, block: tuple[int, int]) -> None:
    weight = layer.weight
    grid = Grid(tuple(weight.shape), block, *((1, 0) if layer.turned else (0, 1)))
    numbers, cells = grid.spread(torch.arange(grid.size)), grid.cells(weight)
    assert numbers.shape == weight.shape
    assert torch.equal(grid.cells(numbers), torch.arange(grid.size)[:, None].expand(-1, grid.elements))
    for unit, places in enumerate(layer.blocks(*block)):
        assert all(numbers[place] == unit for place in places)
        assert sorted(cells[unit].tolist()) == sorted(weight[place].item() for place in places)


@given(layers())
@settings(max_examples=15)
def test_a_spread_of_elements_is_a_view(layer: Layer) -> None:
    (each,) = group(layer.module, pattern=Element())
    assert each.grid is not None
    units = torch.zeros(each.size, dtype=torch.bool)
    assert each.grid.spread(units).data_ptr() == units.data_ptr()
    if not layer.turned:  # as the weight itself lies: nothing is copied on the way to a mask
        assert each.grid.spread(units).is_contiguous()


# Nets


def filled(model: nn.Module) -> nn.Module:
    """No parameter is zero, and no two are equal."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.rand(p.shape) + 0.1)
    return model.eval()


def cnn() -> tuple[nn.Module, Tensor]:
    parts = [nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2)]
    return nn.Sequential(*parts, nn.ConvTranspose2d(8, 4, 2), nn.Flatten(), nn.Linear(100, 4)), torch.randn(3, 4, 6, 6)


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 4)), torch.randn(5, 8)


def transformer() -> tuple[nn.Module, Tensor]:
    """The table and the head are tied; queries, keys and values lie in one weight."""
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    head = nn.Linear(8, 12, bias=False)
    model = nn.Sequential(nn.Embedding(12, 8), encoder, nn.LayerNorm((5, 8)), head)
    model[0].weight = head.weight
    return model, torch.randint(0, 12, (2, 5))


class Residual(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def turned() -> tuple[nn.Module, Tensor]:
    """Inputs first, where the axes alone do not tell: depthwise, and back into the residual they came from."""
    parts = [nn.ConvTranspose1d(8, 8, 3, groups=8), Residual(nn.ConvTranspose1d(8, 8, 1)), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(64, 8), Residual(Conv1D(8, 8)), nn.Linear(8, 1)), torch.randn(2, 8, 6)


def gpt() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Embedding(9, 8), Residual(Conv1D(8, 32), nn.GELU(), Conv1D(32, 8))), torch.ones(2, 3).long()


NETS = {"cnn": cnn, "mlp": mlp, "transformer": transformer, "turned": turned, "gpt": gpt}
_known: dict[tuple[str, Laid], tuple[nn.Module, Tensor, Groups]] = {}


def traced(net: str, pattern: Laid) -> tuple[nn.Module, Tensor, Groups]:
    if (net, pattern) not in _known:
        torch.manual_seed(0)
        model, inputs = NETS[net]()
        _known[net, pattern] = filled(model), inputs, group(trace(model, inputs), pattern=pattern)
    return _known[net, pattern]


def laid(net: str = "mlp", pattern: Laid = Element(), **globs: Any) -> tuple[nn.Module, Groups]:  # noqa: B008
    torch.manual_seed(0)
    model = filled(NETS[net]()[0])
    return model, group(model, pattern=pattern, **globs)


def half(model: nn.Module, groups: Groups, metric: str = "units", at_most: float = 0.5, **keywords: Any) -> Plan:
    return allocate(groups, score(model, groups, criteria.magnitude), Budget(metric, at_most), **keywords)


@pytest.mark.parametrize("net", NETS)
def test_a_model_and_its_trace_are_laid_over_alike(net: str) -> None:
    model, _, from_trace = traced(net, Element())
    from_model = group(model, pattern=Element())
    assert [(g.name, g.grid) for g in from_model] == [(g.name, g.grid) for g in from_trace]
    assert from_model.parameters == from_trace.parameters == sum(p.numel() for p in model.parameters())


def test_weights_of_products_are_laid_over_tied_ones_once_but_no_tables_and_norms() -> None:
    names = [f"1.{name}.weight" for name in ("self_attn.out_proj", "linear1", "linear2")]
    assert {g.name for g in laid("transformer")[1]} == {"0.weight", "1.self_attn.in_proj_weight", *names}
    assert [g.name for g in laid("gpt")[1]] == ["1.body.0.weight", "1.body.2.weight"]


@pytest.mark.parametrize("only", ["3", "3.*", "3.weight", ["3"]])
def test_only_and_skip_choose_by_module_or_weight(only: Any) -> None:
    _, chosen = laid(only=only)
    _, rest = laid(skip=only)
    assert ([g.name for g in chosen], dict(chosen.left_out)) == (["3.weight"], {"0.weight": 96})
    assert ([g.name for g in rest], dict(rest.left_out)) == (["0.weight"], {"3.weight": 48})
    assert "0.weight  left dense: 96 weights" in str(chosen)
    assert chosen.parameters == rest.parameters == 96 + 12 + 24 + 48 + 4


# Budgets

METRICS = {"units": None, "params": "nonzeros", "macs": "effective_macs"}


def measured(model: nn.Module, inputs: Tensor, metric: str) -> float:
    return prunus.measure(model, inputs, [METRICS[metric]])[0].value


def emptied(model: nn.Module, groups: Groups) -> nn.Module:
    model = copy.deepcopy(model)
    for g in groups:
        model.get_parameter(g.name).detach().zero_()
    return model


@pytest.mark.parametrize("scope", ["global", "layer", "row"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_largest_choice_that_a_budget_allows(metric: str, scope: Any) -> None:
    flags = {name: st.booleans() for name in ("relative", "ties")}
    kinds = {"net": [*NETS], "pattern": [Element(), Block(1, 2)], "earlier": ["", "global", "layer"], "least": [0, 0.2]}

    @settings(max_examples=20)
    @given(share=st.floats(0.4, 1.0), **flags, **{name: st.sampled_from(of) for name, of in kinds.items()})
    def law(share: float, relative: bool, ties: bool, net: str, pattern: Laid, earlier: Any, least: float) -> None:
        model, inputs, groups = traced(net, pattern)
        before = measured(model, inputs, metric) if metric != "units" else sum(g.size for g in groups)
        rest = measured(emptied(model, groups), inputs, metric) if metric != "units" else 0
        limit = max(share * before, rest + 0.4 * (before - rest))
        budget = Budget(metric, limit / before if relative else limit, relative)
        past = half(model, groups, at_most=0.9, scope=earlier) if earlier else None
        now = groups if past is None else groups.at(past)
        scores = score(model, now, criteria.magnitude)
        scores = {name: torch.ones_like(s) for name, s in scores.items()} if ties else scores
        plan = allocate(now, scores, budget, scope=scope, keep_at_least=least)

        left, keep = {g.name: now.left(g) for g in groups}, plan.keep
        if past is not None:
            assert all(not bool((keep[g.name] & ~past.keep[g.name]).any()) for g in groups)
        spent = sum(int(k.sum()) for k in keep.values()) if metric == "units" else plan.costs[metric][1]
        assert spent <= limit * (1 + 1e-9)
        unit = 1 if metric == "units" else Grid((4, 4), block_of(pattern)).elements
        wanted = {g.name: (limit - rest) / (before - rest) * g.size for g in groups}
        for g in groups:
            count, most = int(keep[g.name].sum()), int(left[g.name].sum())
            assert count >= min(most, least * g.size)
            if scope != "global":
                assert count == most if wanted[g.name] >= most else abs(count - wanted[g.name]) <= 1 + 1e-6
            if scope == "row" and g.grid is not None:
                kept, rows = (m[g.name].view(g.grid.rows, -1).sum(1) for m in (keep, left))
                assert all(n >= kept.max() - 1 or n == r for n, r in zip(kept, rows, strict=True))
        whole = all(torch.equal(keep[name], left[name]) for name in keep)
        if scope == "global" and metric != "macs":
            assert whole or spent + unit > limit
        if scope == "global" and metric == "macs" and not ties and not least:  # the next best unit does not fit
            assert whole or spent + _macs_of_next(model, inputs, now, keep, scores) > limit

    law()


def _macs_of_next(model: nn.Module, inputs: Tensor, groups: Groups, keep: Any, scores: Any) -> float:
    gone = {g.name: ~keep[g.name][groups.left(g)] for g in groups}
    best = max((n for n in gone if gone[n].any()), key=lambda n: scores[n][gone[n]].max())
    lone = emptied(model, groups.only(best))
    return (measured(model, inputs, "macs") - measured(lone, inputs, "macs")) / groups[best].size


@pytest.mark.parametrize("pattern", [Element(), *CELLS, *BLOCKS])
@pytest.mark.parametrize("net", ["cnn", "mlp", "transformer", "gpt"])
def test_predicted_costs_are_those_that_are_measured(net: str, pattern: Laid) -> None:
    model, inputs, _ = traced(net, Element())
    groups = group(trace(model, inputs), pattern=pattern)
    scores = score(model, groups, criteria.random, seed=1)
    plan = allocate(groups, scores, None if isinstance(pattern, NofM) else Budget("macs", 0.6))
    zeros = copy.deepcopy(model)
    prunus.mask(zeros, plan)
    for metric, name in (("params", "nonzeros"), ("macs", "effective_macs")):
        found = [prunus.measure(m, inputs, [name])[0].value for m in (model, zeros)]
        assert list(plan.costs[metric]) == found
        assert found[1] < found[0]


@pytest.mark.parametrize("scope", ["global", "layer", "row"])
def test_the_best_elements_stay(scope: Any) -> None:
    @settings(max_examples=15)
    @given(st.sampled_from(["cnn", "mlp", "gpt"]), st.floats(0.1, 1.0))
    def law(net: str, share: float) -> None:
        model, groups = laid(net)
        plan = half(model, groups, at_most=share, scope=scope)
        sheets = [_rows(g.grid, model.get_parameter(g.name), plan.keep[g.name]) for g in groups if g.grid]
        rows = [row for sheet in sheets for row in zip(*sheet, strict=True)]
        every = [tuple(np.concatenate([part.flatten() for part in parts]) for parts in zip(*sheets, strict=True))]
        for values, kept in {"global": every, "layer": sheets, "row": rows}[scope]:
            assert values[kept].min(initial=np.inf) > values[~kept].max(initial=0.0)

    law()


def _rows(grid: Grid, weight: Tensor, keep: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The sizes of a weight, and which of them stay, with the outputs first."""
    outputs_first = weight.detach().movedim((grid.outputs, grid.inputs), (0, 1))
    return sized(outputs_first).reshape(grid.rows, -1), keep.view(grid.rows, -1).numpy()


@pytest.mark.parametrize("metric", METRICS)
def test_of_equal_scores_every_group_keeps_the_same_share(metric: str) -> None:
    _, _, groups = traced("cnn", Element())
    plan = allocate(groups, {g.name: torch.ones(g.size) for g in groups}, Budget(metric, 0.5))
    shares = [mask.float().mean().item() for mask in plan.keep.values()]
    assert max(shares) - min(shares) <= 2 / min(g.size for g in groups)


def test_scope_layer_goes_below_the_share_where_small_layers_keep_one_unit() -> None:
    """Ten layers of two weights keep one each; 10 % of 1,020 leave 92 to the large one, at less than a tenth."""
    model = nn.Sequential(*(nn.Linear(2, 1, bias=False) for _ in range(10)), nn.Linear(100, 10, bias=False))
    plan = half(model, group(model, pattern=Element()), at_most=0.1, scope="layer")
    assert [int(k.sum()) for k in plan.keep.values()] == [*[1] * 10, 92]


def test_what_an_earlier_plan_took_from_groups_left_out_is_not_spent_again() -> None:
    model, groups = laid()
    first = half(model, groups, at_most=0.5, scope="layer")
    rest = groups.at(first).only("3.weight")
    plan = half(model, rest, "params", 0.6)
    assert plan.costs["params"] == (184, 40 + 48 + 22)
    with pytest.raises(BudgetError, match=r"89 of 184 params are left \(0.484\). Ask for at most 0.484"):
        half(model, rest, "params", 0.3)


def test_rows_that_are_short_give_their_units_to_others() -> None:
    groups = group(nn.Linear(4, 2, bias=False), pattern=Element())
    past = Plan(groups, {"weight": torch.tensor([True] * 5 + [False] * 3)})
    plan = allocate(groups.at(past), {"weight": torch.ones(5)}, Budget("units", 0.5), scope="row", keep_at_least=0.5)
    assert plan.keep["weight"].view(2, 4).sum(1).tolist() == [3, 1]


@settings(max_examples=100)
@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 1.0, 2.5, np.inf]), min_size=1, max_size=30), st.integers(0, 31))
def test_top_keeps_the_largest_and_spreads_ties_evenly(values: list[float], count: int) -> None:
    keep = top(torch.tensor(values), count).numpy()
    kept = np.asarray(values)[keep]
    count = min(count, len(values))
    assert sorted(kept, reverse=True) == sorted(values, reverse=True)[:count]
    edge = min(kept, default=None)
    tied = [bool(k) for k, v in zip(keep, values, strict=True) if v == edge]
    if sum(tied) > 0:
        gaps = np.diff([*np.flatnonzero(tied), len(tied)])  # to the next, and from the last to the end
        assert tied[0]
        assert gaps.max() - gaps.min() <= 1


# Errors


def half_of(pattern: Laid = Element(), metric: str = "units") -> Plan:  # noqa: B008
    return half(*laid("mlp", pattern), metric)


def rows_of_channels() -> Plan:
    model, inputs = mlp()
    return half(model, group(trace(model, inputs)), scope="row")


def scored(criterion: Any = criteria.magnitude, width: int = 12) -> Plan:
    other = nn.Sequential(nn.Linear(8, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 4))
    groups = laid()[1]
    return allocate(groups, score(other, groups, criterion))


def narrow(stats: prunus.Stats) -> dict[str, Tensor]:
    return {name: w[:, :1] if w.ndim > 1 else w for name, w in stats.weights.items()}


LOOKUP = nn.Sequential(nn.Embedding(4, 4), nn.LayerNorm(4))
ODD = r" is \(8, 6\); .*\) needs a multiple of"
SIX = nn.Linear(6, 8)
REFUSED: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "inputs that do not divide": (GroupError, f"'weight'{ODD} 4 along dim 1", lambda: group(SIX, pattern=NofM(2, 4))),
    "and the way out": (GroupError, r"dense with skip=\['weight'\]", lambda: group(SIX, pattern=Block(1, 4))),
    "outputs that lie last": (GroupError, f"{ODD} 4 along dim 1", lambda: group(Conv1D(8, 6), pattern=Block(4, 1))),
    "a ratio with a budget": (BudgetError, r"n=2, m=4\) fixes its own .* 0.5;", lambda: half_of(NofM(2, 4))),
    "elements without a budget": (BudgetError, r"Element\(\) needs a budget, such as", scored),
    "rows of channels": (BudgetError, "a channel has no rows", rows_of_channels),
    "a ratio of none": (GroupError, r"NofM\(n=0, m=4\) needs positive integers", lambda: NofM(0, 4)),
    "a ratio of all": (GroupError, r"NofM\(n=4, m=4\) keeps 4 of every 4; expected n < m", lambda: NofM(4, 4)),
    "a block of no rows": (GroupError, r"Block\(rows=0, cols=1\) needs positive", lambda: Block(0, 1)),
    "a block of no columns": (GroupError, r"Block\(rows=4, cols=-1\) needs positive", lambda: Block(4, -1)),
    "an unknown glob of only": (GroupError, "matches 'head' of only.* such as '0.weight'", lambda: laid(only=["head"])),
    "an unknown glob of skip": (GroupError, "matches 'head' of skip.*, '3.weight'", lambda: laid(skip=["0", "head"])),
    "nothing to lay over": (GroupError, "finds no weight of two dimen", lambda: group(LOOKUP, pattern=Element())),
    "nothing left": (GroupError, "There is no group left to prune", lambda: half(*laid(skip="*"))),
    "one value a unit": (CriterionError, r"\(12, 1\) for '0.weight'.* serves Channel only", lambda: scored(narrow)),
    "other shapes": (PlanError, r"'0.weight' of shape \(10, 8\).* \(12, 8\). Lay the", lambda: scored(width=10)),
    "MACs without a trace": (GroupError, r"lay them over prunus.trace\(model, in", lambda: half_of(metric="macs")),
    "a graph without a trace": (GroupError, r"lay them over prunus.trace\(model, inputs\)", lambda: half_of().graph),
    "to shrink": (PlanError, "makes zeros within tensors", lambda: prunus.shrink(laid()[0], half_of())),
    "a plan of another laying to follow": (PlanError, r"\(or lay\) once and make", lambda: half_of().then(half_of())),
    "a plan of another laying": (GroupError, r"\(or lay\) once and use", lambda: laid()[1].at(half_of())),
    "a plan of other blocks": (GroupError, "of another structure", lambda: laid()[1].at(half_of(Block(1, 2)))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_and_why(what: str) -> None:
    error, match, act = REFUSED[what]
    with pytest.raises(error, match=match):
        act()


@pytest.mark.parametrize("scope", ["global", "layer", "row"])
def test_a_budget_out_of_reach_says_how_near_it_came(scope: Any) -> None:
    """Two weights and 40 others of 184 parameters at least."""
    model, groups = laid()
    with pytest.raises(BudgetError, match=r"reached.* 42 of 184 params are left \(0.228\). Ask for at most 0.229"):
        half(model, groups, "params", 0.1, scope=scope)
    assert half(model, groups, "params", 0.229, scope=scope).costs["params"] == (184, 42)


# Plans


@pytest.mark.parametrize("pattern", [Element(), NofM(2, 4), Block(4, 1)])
@pytest.mark.parametrize("graph", [False, True])
def test_a_saved_plan_is_the_same_plan_on_another_laying(tmp_path: Path, graph: bool, pattern: Laid) -> None:
    model, inputs, groups = traced("mlp", pattern)
    again = group(trace(model, inputs) if graph else model, pattern=pattern)
    groups = groups if graph else group(model, pattern=pattern)
    scores = score(model, groups, criteria.magnitude)
    plan = allocate(groups, scores, None if isinstance(pattern, NofM) else Budget("units", 0.5))
    plan.save(tmp_path)
    found = load_plan(tmp_path, again)
    assert all(torch.equal(mask, plan.keep[name]) for name, mask in found.keep.items())
    assert (found.keep.keys(), found.budget, found.costs) == (plan.keep.keys(), plan.budget, plan.costs)
    zeros = zip(zeros_of(model, found).values(), zeros_of(model, plan).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in zeros)


@pytest.mark.parametrize("other", ["names", "shapes", "blocks"])
def test_without_a_trace_a_plan_is_bound_to_names_shapes_and_blocks(tmp_path: Path, other: str) -> None:
    model, groups = laid(pattern=Block(4, 1))
    half(model, groups).save(tmp_path)
    plain = nn.Linear(8, 12), nn.Linear(12, 4)
    nets = {"names": nn.Sequential(*plain), "shapes": nn.Sequential(plain[0], *[nn.ReLU()] * 2, nn.Linear(12, 8))}
    again = group(nets.get(other, model), pattern=Block(1, 4) if other == "blocks" else Block(4, 1))
    with pytest.raises(PlanError, match="another structure than these groups"):
        load_plan(tmp_path, again)


def test_plans_compose_as_dead_units_stay_dead() -> None:
    model, groups = laid()
    first = half(model, groups, at_most=0.6)
    second = half(model, groups.at(first), at_most=0.3)
    both = first.then(second)
    assert sum(int(k.sum()) for k in both.keep.values()) == int(0.3 * 144)
    assert all(torch.equal(both.left[leaf], second.left[leaf]) for leaf in second.left)
    assert not any(bool((second.keep[n] & ~first.keep[n]).any()) for n in first.keep)


# Which dimension holds the inputs, and what is a weight of a product at all

Run = Callable[[Any, Tensor], Tensor]
FIRST: dict[str, Run] = {
    "linear": lambda m, h: nn.functional.linear(h, m.weight.t()),
    "scaled": lambda m, h: h @ (m.weight * 2),
    "einsum": lambda m, h: torch.einsum("bi,io->bo", h, m.weight),
    "matmul": lambda m, h: h @ m.weight,
    "addmm": lambda m, h: torch.addmm(h, h, m.weight),
}
LAST: dict[str, Run] = {
    "linear": lambda m, h: nn.functional.linear(h, m.weight),
    "turned": lambda m, h: h @ m.weight.t().contiguous(),
    "left": lambda m, h: (m.weight @ h.t()).t(),
    "einsum": lambda m, h: torch.einsum("bi,oi->bo", h, m.weight),
}


class Own(nn.Module):
    """A weight of its own, in a module of a kind that nobody knows."""

    def __init__(self, run: Run, *shape: int) -> None:
        super().__init__()
        self.run, self.weight = run, nn.Parameter(torch.rand(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def grids(groups: Groups) -> dict[str, tuple[int, int] | None]:
    return {g.name: g.grid and (g.grid.outputs, g.grid.inputs) for g in groups}


@pytest.mark.parametrize(
    ("run", "shape", "inputs"),
    [
        *((run, (8, 8), 0) for run in FIRST.values()),
        *((run, (8, 8), 1) for run in LAST.values()),
        (FIRST["scaled"], (8, 1), 0),
        (FIRST["linear"], (8, 1), 0),
        (LAST["turned"], (1, 8), 1),
    ],
)
def test_the_product_says_which_dimension_holds_the_inputs(run: Run, shape: tuple[int, int], inputs: int) -> None:
    part = Own(run, *shape)
    model = nn.Sequential(nn.Linear(4, 8), Residual(part) if shape == (8, 8) else part)
    name = "1.body.0.weight" if shape == (8, 8) else "1.weight"
    found = group(trace(model, torch.randn(3, 4)), pattern=Element())
    assert grids(found) == {"0.weight": (0, 1), name: (1 - inputs, inputs)}


def test_of_several_products_of_a_weight_the_first_says_it() -> None:
    model = Own(lambda m, x: torch.relu(nn.functional.linear(x, m.weight)) @ m.weight, 8, 8)
    assert grids(group(trace(model, torch.randn(3, 8)), pattern=Element())) == {"weight": (0, 1)}


def test_inputs_may_lie_last_of_three() -> None:
    model = Own(lambda m, x: torch.einsum("bi,eoi->beo", x, m.weight), 3, 4, 6)
    assert grids(group(trace(model, torch.randn(2, 6)), pattern=Block(4, 2))) == {"weight": (1, 2)}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("graph", [False, True])
def test_a_parametrized_weight_is_laid_as_that_of_its_owner_and_a_gain_is_not(graph: bool) -> None:
    convs = [P.spectral_norm(nn.ConvTranspose2d(4, 8, 3)), P.weight_norm(nn.Conv2d(8, 8, 3))]
    linears = [weight_norm(nn.Linear(128, 16)), P.spectral_norm(Conv1D(16, 8))]
    model = nn.Sequential(*convs, nn.Flatten(), *linears)
    found = group(trace(model, torch.randn(2, 4, 4, 4)) if graph else model, pattern=NofM(2, 4))
    assert grids(found) == {
        "0.parametrizations.weight.original": (1, 0),
        "1.parametrizations.weight.original1": (0, 1),
        "3.weight_v": (0, 1),
        "4.parametrizations.weight.original": (1, 0),
    }
    assert found.left_out == {}


def test_a_gain_of_ones_own_is_not_laid_over_but_a_row_or_column_that_is_a_weight_is() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return nn.functional.linear(x, m.weight * m.gain)

    own = Own(run, 8, 4)
    own.gain = nn.Parameter(torch.ones(8, 1))
    model = nn.Sequential(nn.Linear(1, 4), own, nn.Linear(8, 1))
    assert [*grids(group(trace(model, torch.randn(2, 1)), pattern=Element()))] == ["0.weight", "1.weight", "2.weight"]


class Placed(nn.Module):
    """A table of positions, and a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.rand(10, 8))
        self.own = Own(lambda m, x: x @ m.weight, 8, 4)
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.rnn, self.cell, self.both = nn.GRU(8, 4), nn.LSTMCell(8, 4), nn.Bilinear(8, 8, 1)


def test_without_a_trace_what_may_be_no_weight_of_a_product_is_left_out_and_told() -> None:
    found = group(Placed(), pattern=Element())
    cells = [f"{name}.weight_{of}h{end}" for name, end in (("rnn", "_l0"), ("cell", "")) for of in "ih"]
    weights = ["attention.in_proj_weight", "attention.out_proj.weight", "both.weight", *cells]
    assert {g.name for g in found} == {*weights}
    assert found.left_out == {"pos": 80, "own.weight": 32}
    assert "own.weight                 left dense: 32 weights" in str(found)


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("own", ["own.weight"]),
        ("own.weight", ["own.weight"]),
        (["both", "o*n"], ["own.weight", "both.weight"]),
        ("po?", ["pos"]),
        ("b*", ["both.weight"]),
        (["*.weight"], ["attention.out_proj.weight", "both.weight"]),
    ],
)
def test_only_lays_a_weight_of_an_unknown_kind_where_it_names_it(only: Any, names: list[str]) -> None:
    found = group(Placed(), pattern=Element(), only=only)
    assert [g.name for g in found] == names
    assert {"pos", "own.weight"} - {*names} <= found.left_out.keys()


def test_a_model_of_nothing_but_unknown_kinds_says_the_ways_out() -> None:
    with pytest.raises(GroupError, match=r"prunus.trace\(model, inputs\).* only=\['weight'\]"):
        group(Own(FIRST["matmul"], 8, 8), pattern=Element())


def test_groups_left_out_later_are_counted_and_told_too() -> None:
    model, groups = laid("mlp", Block(4, 1))
    later, at_once = groups.skip("3"), group(model, pattern=Block(4, 1), skip="3")
    assert later.left_out == at_once.left_out == {"3.weight": 48}
    assert groups.only("3.weight").left_out == {"0.weight": 96}
    assert str(later) == str(at_once)
    assert half(model, later).then(half(model, groups.at(half(model, later)))).groups.left_out == {}


@pytest.mark.parametrize("other", [NofM(2, 4), NofM(1, 4), Block(1, 1)])
def test_a_plan_is_bound_to_its_pattern(tmp_path: Path, other: Laid) -> None:
    model, groups = laid()
    half(model, groups, at_most=0.9).save(tmp_path)
    with pytest.raises(PlanError, match="another structure than these groups"):
        load_plan(tmp_path, group(model, pattern=other))
