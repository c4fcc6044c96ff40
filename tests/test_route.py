"""Mixtures of experts: an expert goes with its rows of the router; and operations that few models have, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from halves import IMAGE, VECTOR, WORDS, L, Net, assert_same, described, draw, halve, learned
from torch import Tensor, nn

from prunus.allocate import allocate
from prunus.apply.shrink import shrink
from prunus.errors import BudgetError, ProofError
from prunus.graph.group import group
from prunus.graph.trace import trace
from prunus.types import Budget

EXPERTS, CHOSEN, WIDTH, HIDDEN = 6, 2, 8, 16


def routed(self: Any, x: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = torch.topk(chances, CHOSEN, dim=-1)
    weights /= weights.sum(-1, keepdim=True)  # in place, as transformers does: the indices are not touched
    return weights, experts


def looked_up(self: Any, x: Tensor) -> Tensor:
    """Each token by the matrices of its own experts."""
    weights, experts = routed(self, x, self.router(x).softmax(-1))
    up, down = self.up[experts], self.down[experts]  # (n, k, hidden, width), (n, k, width, hidden)
    y = torch.einsum("nd,nkhd->nkh", x, up).relu()
    return self.o(torch.einsum("nkh,nkdh,nk->nd", y, down, weights))


def sorted_by_expert(self: Any, x: Tensor) -> Tensor:
    """Tokens put in the order of their experts, then one product a matrix, as transformers does it."""
    weights, experts = routed(self, x, self.router(x).softmax(-1))
    flat, order = experts.reshape(-1).sort()
    counts = torch.histc(flat.float(), bins=self.experts, min=0, max=self.experts - 1)
    ends = counts.cumsum(0, dtype=torch.int32)
    y = F.grouped_mm(x[order // CHOSEN], self.up.transpose(1, 2), offs=ends).relu()
    y = F.grouped_mm(y, self.down.transpose(1, 2), offs=ends) * weights.reshape(-1)[order][:, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return self.o(y[back].view(len(x), CHOSEN, -1).sum(1))


def mixture(run: Callable[..., Tensor], **more: Any) -> Net:
    torch.manual_seed(0)
    parts: dict[str, Any] = {"router": L(WIDTH, EXPERTS, bias=False), "o": L(WIDTH, 3), "experts": EXPERTS}
    return Net(run, up=learned(EXPERTS, HIDDEN, WIDTH), down=learned(EXPERTS, WIDTH, HIDDEN), **parts, **more)


FORMS = {"looked up": looked_up, "sorted": sorted_by_expert}


@pytest.mark.parametrize("form", FORMS)
def test_experts_are_units_and_what_is_left_is_a_mixture_of_fewer(form: str) -> None:
    half = halve(mixture(FORMS[form]), draw(9, WIDTH))
    kinds = {g.kind: g for g in half.groups}
    assert kinds["expert"].size == EXPERTS
    assert not kinds["expert"].exact
    assert type(half.small) is Net
    assert half.small.router.out_features == 3
    assert half.small.up.shape == (3, HIDDEN // 2, WIDTH)


@pytest.mark.parametrize("form", FORMS)
def test_without_the_experts_left_out_the_router_chooses_among_the_others(form: str) -> None:
    half = halve(mixture(FORMS[form]), draw(9, WIDTH), kind="expert")
    (only,) = half.groups
    gone = ~half.plan.keep[only.name]

    def closed(self: Any, x: Tensor) -> Tensor:
        router = self.router
        self.router = lambda y: router(y).masked_fill(gone, -torch.inf)
        try:
            return FORMS[form](self, x)
        finally:
            self.router = router

    model = half.model
    model.run = closed
    whole = mixture(FORMS[form])
    whole.load_state_dict(model.state_dict())
    del whole.router
    whole.router = Closed(model.router, gone)
    assert_same(whole, half.small, draw(9, WIDTH))
    assert_same(whole, half.small, draw(5, WIDTH))


class Closed(nn.Module):
    """A router for which some experts do not exist."""

    def __init__(self, router: nn.Module, gone: Tensor) -> None:
        super().__init__()
        self.router, self.gone = router, gone

    def forward(self, x: Tensor) -> Tensor:
        return self.router(x).masked_fill(self.gone, -torch.inf)


def test_a_width_that_the_operation_refuses_is_said() -> None:
    groups = group(trace(mixture(sorted_by_expert), draw(9, WIDTH))).only(kind="channel")
    plan = allocate(groups, {g.name: torch.rand(g.size) for g in groups}, Budget("units", at_most=6 / HIDDEN))
    with pytest.raises(ProofError, match=r"at its own dtype: strides should be multiple of 16 bytes.*round_to"):
        shrink(mixture(sorted_by_expert), plan)


def test_as_many_experts_stay_as_are_chosen() -> None:
    groups = group(trace(mixture(looked_up), draw(9, WIDTH))).only(kind="expert")
    scores = {g.name: torch.rand(g.size) for g in groups}
    plan = allocate(groups, scores, Budget("units", at_most=CHOSEN / EXPERTS), scope="layer")
    assert [int(k.sum()) for k in plan.keep.values()] == [CHOSEN]
    with pytest.raises(BudgetError, match="cannot be reached"):
        allocate(groups, scores, Budget("units", at_most=0.9 / EXPERTS), scope="layer")


@pytest.mark.parametrize(
    "use",
    [
        lambda chosen: chosen.float().mean(-1, keepdim=True),
        lambda chosen: (chosen == 1).float().sum(-1, keepdim=True),
        lambda chosen: F.one_hot(chosen, EXPERTS).float().sum((1, 2))[:, None],
    ],
    ids=["averaged", "compared", "counted"],
)
def test_indices_used_as_numbers_keep_every_expert(use: Callable[[Tensor], Tensor]) -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        return looked_up(self, x) * use(routed(self, x, self.router(x).softmax(-1))[1])

    graph = trace(mixture(run), draw(9, WIDTH))
    assert not any(g.kind == "expert" for g in group(graph))
    assert "numbers" in graph.fixed["router.weight[0]"]


def test_a_choice_of_the_smallest_keeps_every_expert() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        weights, experts = torch.topk(self.router(x), CHOSEN, dim=-1, largest=False)
        return self.o((weights.softmax(-1)[..., None] * self.down[experts].mean(-1)).sum(1))

    graph = trace(mixture(run), draw(9, WIDTH))
    assert "it is put in order" in graph.fixed["router.weight[0]"]
    assert "it is indexed by a tensor" in graph.fixed["down[0]"]


def test_indices_that_are_written_over_keep_every_expert() -> None:
    """Padding that is sent to one expert, under another name for the same memory."""

    def run(self: Any, x: Tensor) -> Tensor:
        weights, experts = routed(self, x, self.router(x).softmax(-1))
        experts = experts.clone()
        experts.view(-1)[x.new_zeros(18).bool()] = 1
        return self.o((weights[..., None] * self.down[experts].mean(-1)).sum(1))

    graph = trace(mixture(run), draw(9, WIDTH))
    assert "router.weight[0]" in graph.fixed


@pytest.mark.parametrize(
    "use",
    [
        lambda chosen: chosen.cumsum(-1)[:, :1],
        lambda chosen: chosen.float().softmax(-1)[:, :1],
        lambda chosen: chosen[chosen.new_ones(9).bool()].sum(-1, keepdim=True),
        lambda chosen: torch.zeros(9, CHOSEN, dtype=torch.long).index_put((torch.arange(9),), chosen)[:, :1],
    ],
    ids=["added up", "weighed", "masked", "put elsewhere"],
)
def test_indices_that_are_handed_on_are_followed(use: Callable[[Tensor], Tensor]) -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        return looked_up(self, x) * use(routed(self, x, self.router(x).softmax(-1))[1])

    assert not any(g.kind == "expert" for g in group(trace(mixture(run), draw(9, WIDTH))))


def test_indices_that_are_a_result_keep_every_expert() -> None:
    def run(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return looked_up(self, x), routed(self, x, self.router(x).softmax(-1))[1]

    graph = trace(mixture(run), draw(9, WIDTH))
    assert "indices of it are an output of the model" in graph.fixed["router.weight[0]"]


def test_a_running_sum_stays_where_its_unit_is_gone() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.o(h) + h.cumsum(-1).sum(-1, keepdim=True)

    (only,) = halve(Net(run, a=L(8, 6), o=L(6, 3)), VECTOR).groups
    assert not only.exact


# Operations that few models have


class Form(NamedTuple):
    run: Callable[..., Tensor]
    parts: dict[str, Any]
    inputs: Any
    groups: str


def cumulated(self: Any, x: Tensor) -> Tensor:
    return self.o(self.a(x).cumsum(-1))


def written(self: Any, x: Tensor) -> Tensor:
    y = torch.zeros(2, 5, 6)
    y[:, torch.tensor([3, 1])] = self.a(x[:, :2])
    return self.o(y)


def complexly(self: Any, x: Tensor) -> Tensor:
    y = torch.view_as_complex(self.a(x).unflatten(-1, (6, 2)).contiguous())
    turned = y * torch.polar(self.length, self.angle)
    return self.o(torch.view_as_real(turned).flatten(-2))


def gridded(self: Any, x: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    return self.o((self.a(x) * (rows - columns)).sum((2, 3)))


PLACES = torch.tensor([3, 0, 2, 4, 1])[:, None]
SPECIAL = {
    "cumsum over a pruned axis": Form(cumulated, {"a": L(8, 6), "o": L(6, 3)}, VECTOR, "a 6"),
    "written by index": Form(written, {"a": L(16, 6), "o": L(6, 3)}, WORDS, "a 6"),
    "complex numbers": Form(
        complexly, {"a": L(8, 12), "o": L(12, 3), "length": learned(6), "angle": learned(6)}, VECTOR, "a 6"
    ),
    "a grid": Form(gridded, {"a": nn.Conv2d(3, 6, 1), "o": L(6, 3)}, IMAGE, "a 6"),
    "reshape as another": Form(
        lambda self, x: self.o((self.a(x).flatten().reshape_as(self.b(x)) * self.b(x)).flatten(1)),
        {"a": L(16, 6), "b": L(16, 6), "o": L(30, 3)},
        WORDS,
        "a 6",
    ),
    "sampled at places": Form(
        lambda self, x: self.o(
            F.grid_sample(self.a(x), x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False).sum((2, 3))
        ),
        {"a": nn.Conv2d(3, 6, 1), "o": L(6, 3)},
        IMAGE,
        "a 6",
    ),
    "windows as columns": Form(
        lambda self, x: self.o(F.unfold(self.a(x), 2, stride=2).transpose(1, 2)),
        {"a": nn.Conv2d(3, 6, 1), "o": L(24, 3)},
        IMAGE,
        "a 6",
    ),
    "columns as windows": Form(
        lambda self, x: self.o(F.fold(self.a(x).flatten(2), (9, 9), 2).mean((2, 3))),
        {"a": nn.Conv2d(3, 24, 1), "o": L(6, 3)},
        IMAGE,
        "a 6",
    ),
    "windows along a dimension": Form(
        lambda self, x: self.o(self.a(x).unfold(1, 3, 1).sum(-1)), {"a": L(16, 6), "o": L(6, 3)}, WORDS, "a 6"
    ),
    "written by a list of indices": Form(
        lambda self, x: self.o(torch.zeros(2, 5, 6).scatter(1, PLACES.expand(2, 5, 6), self.a(x))),
        {"a": L(16, 6), "o": L(6, 3)},
        WORDS,
        "a 6",
    ),
    "an einsum with dots": Form(
        lambda self, x: self.o(torch.einsum("...d,hd->...h", self.a(x), self.w)),
        {"a": L(16, 6), "w": learned(4, 6), "o": L(4, 3)},
        WORDS,
        "w 4, a 6",
    ),
    "differences with a beginning": Form(
        lambda self, x: self.o(self.a(x).diff(dim=1, prepend=self.b(x)[:, :1])),
        {"a": L(16, 6), "b": L(16, 6), "o": L(6, 3)},
        WORDS,
        "a 6",
    ),
    "differences of positions": Form(
        lambda self, x: self.o(self.a(x).diff(dim=1)), {"a": L(16, 6), "o": L(6, 3)}, WORDS, "a 6"
    ),
    "chosen by a mask": Form(
        lambda self, x: self.o(self.a(x)[:, torch.tensor([True, False, True, True, False])]),
        {"a": L(16, 6), "o": L(6, 3)},
        WORDS,
        "a 6",
    ),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_half_of_it_goes_and_zeroing_gives_the_same(name: str) -> None:
    form = SPECIAL[name]
    torch.manual_seed(0)
    half = halve(Net(form.run, **form.parts), form.inputs)
    assert described(half.groups) == form.groups
    assert_same(half.zeroed, half.small, form.inputs)


def test_rows_under_a_weight_norm_can_go_though_a_zero_row_has_no_direction() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(L(8, 12), nn.ReLU(), nn.utils.parametrizations.weight_norm(L(12, 6)), nn.ReLU(), L(6, 3))
    half = halve(model, VECTOR)
    assert described(half.groups) == "0 12, 2 6 inexact"
    exact = halve(model, VECTOR, exact=True)
    assert_same(exact.zeroed, exact.small, VECTOR)
    assert (half.small[2].in_features, half.small[2].out_features) == (6, 3)
