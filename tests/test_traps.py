"""What has misled tools that cut networks: each trap as a small module, cut in half, proven and held to the original.

Where groups are exact, the second witness is the original with the removed units zeroed, at another batch size and
without any part of `prunus.apply`.
"""

from __future__ import annotations

import inspect
import logging
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from halves import IDS, IMAGE, VECTOR, WORDS, L, Net, S, assert_same, described, draw, halve, learned
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization

from prunus.allocate import allocate
from prunus.apply import surgery
from prunus.apply.build import graph_model
from prunus.apply.shrink import shrink
from prunus.apply.verify import verify
from prunus.errors import GroupError, ProofError, TraceError
from prunus.graph.group import group
from prunus.graph.interpret import GraphModel
from prunus.graph.node import Node
from prunus.graph.rules import RULES
from prunus.graph.trace import trace
from prunus.plan import Plan
from prunus.types import Budget, Inputs

# Forms of code: what can be pruned, and whether the smaller model is still of the user's class


def halves(self: Any, x: Tensor) -> Tensor:
    a, b = self.a(x).chunk(2, -1)
    return self.o(a * b.sigmoid())


def pieces(self: Any, x: Tensor) -> Tensor:
    a, b = self.a(x).split([4, 8], -1)
    return self.o(a) + self.p(b)


def tie(self: Any, x: Tensor) -> Tensor:
    a, b = self.a(x).chunk(2, -1)
    return self.o(a) + self.p(b)


def ends(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.o(y[..., -4:]) + self.p(y[..., :-4])


def written(self: Any, x: Tensor) -> Tensor:
    y = self.a(x).clone()
    y[:, :2] += self.b(x)
    y[:, :2].mul_(2)
    return self.o(y)


def poured(self: Any, x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 6)
    y[:, :4] = self.a(x)
    return self.o(y)


def in_place(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    y.add_(self.b(x)).mul_(self.g)
    y += 1
    return self.o(y.relu_())


def root_mean_square(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.o(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * self.g)


def squeezed(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.o((y * self.c(y.mean((2, 3))).sigmoid()[:, :, None, None]).mean((2, 3)))


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """(b, h, l, d) each -> (b, l, h d)."""
    return ((q @ k.transpose(-1, -2) * scale).softmax(-1) @ v).transpose(1, 2).flatten(2)


def heads_first(self: Any, x: Tensor) -> Tensor:
    """The integers of the code are attributes: all of it can be said with them."""
    batch, length, _ = x.shape
    q, k, v = (part(x).view(batch, length, self.heads, self.dim).transpose(1, 2) for part in (self.q, self.k, self.v))
    y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
    return self.o(y.transpose(1, 2).reshape(batch, length, self.heads * self.dim))


def divided(self: Any, x: Tensor) -> Tensor:
    """The head dimension is what the code divides: `C // heads`."""
    batch, length, _ = x.shape
    dim = self.q.out_features // self.heads
    q, k, v = (part(x).view(batch, length, self.heads, dim).transpose(1, 2) for part in (self.q, self.k, self.v))
    return self.o(attention(q, k, v, dim**-0.5))


def packed(self: Any, x: Tensor) -> Tensor:
    """q, k, v in one layer; sizes said by one attribute and -1."""
    q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
    return self.o(attention(q, k, v, 0.5))


def hard_coded(self: Any, x: Tensor) -> Tensor:
    """As in torch's own multi-head attention: the width is a number in the code."""
    batch, length, _ = x.shape
    y = self.qkv(x).unflatten(-1, (3, 16)).unsqueeze(0).transpose(0, -2).squeeze(-2)
    q, k, v = (part.view(batch, length, 4, 4).transpose(1, 2) for part in y)
    return self.o(attention(q, k, v, 0.5))


def three() -> dict[str, Any]:
    return {
        "q": nn.Linear(16, 16),
        "k": nn.Linear(16, 16),
        "v": nn.Linear(16, 16),
        "o": nn.Linear(16, 3),
        "heads": 4,
        "dim": 4,
    }


def conv(*sizes: int, **options: Any) -> nn.Module:
    return nn.Conv2d(*sizes, **options)


def end(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)


@dataclass(frozen=True)
class Form:
    """A network, an example call, its groups, and whether the smaller one is of the same class."""

    make: Callable[[], nn.Module]
    inputs: Tensor
    groups: str
    own: bool = True
    only: dict[str, Any] = field(default_factory=dict[str, Any])


FORMS = {
    # convolutions
    "batch norm": Form(lambda: S(conv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *end(8)), IMAGE, "0 8"),
    "depthwise": Form(lambda: S(conv(3, 8, 1), conv(8, 8, 3, groups=8), *end(8)), IMAGE, "0 8"),
    "grouped": Form(
        lambda: S(conv(3, 8, 1), conv(8, 12, 3, groups=4), *end(12)), IMAGE, "0:conv_group 4, 0:channel 2, 1 3"
    ),
    "transposed": Form(lambda: S(conv(3, 8, 1), nn.ConvTranspose2d(8, 6, 2, stride=2), *end(6)), IMAGE, "0 8, 1 6"),
    "transposed, grouped": Form(
        lambda: S(conv(3, 8, 1), nn.ConvTranspose2d(8, 6, 2, groups=2), *end(6)),
        IMAGE,
        "0:conv_group 2, 0:channel 4, 1 3",
    ),
    "pixels shuffled": Form(lambda: S(conv(3, 16, 3), nn.PixelShuffle(2), *end(4)), IMAGE, "0 4"),
    "pixels unshuffled": Form(lambda: S(conv(3, 4, 1), nn.PixelUnshuffle(2), *end(16)), IMAGE, "0 4"),
    "channels shuffled": Form(
        lambda: S(conv(3, 8, 1), nn.ChannelShuffle(2), *end(8)), IMAGE, "0:channel 2, 0:channel#2 4"
    ),
    "one slope a channel": Form(lambda: S(conv(3, 8, 1), nn.PReLU(8), *end(8)), IMAGE, "0 8"),
    "instance norm": Form(lambda: S(conv(3, 8, 1), nn.InstanceNorm2d(8, affine=True), *end(8)), IMAGE, "0 8"),
    "group norm": Form(
        lambda: S(conv(3, 8, 1), nn.GroupNorm(4, 8), nn.ReLU(), *end(8)), IMAGE, "0:channel 4, 0:channel#2 2 inexact"
    ),
    "squeeze and excite": Form(lambda: Net(squeezed, a=conv(3, 8, 1), c=L(8, 8), o=L(8, 3)), IMAGE, "a 8"),
    "reflected borders": Form(
        lambda: S(conv(3, 8, 3, padding=1, padding_mode="reflect"), conv(8, 4, 3, padding="same"), *end(4)),
        IMAGE,
        "0 8, 1 4",
    ),
    "size in the code": Form(
        lambda: Net(lambda self, x: self.o(self.a(x).relu().view(-1, 8 * 36)), a=conv(3, 8, 3), o=L(288, 3)),
        IMAGE,
        "a 8",
        own=False,
    ),
    "size in an attribute": Form(
        lambda: Net(lambda self, x: self.o(self.a(x).relu().view(-1, self.n)), a=conv(3, 8, 3), o=L(288, 3), n=288),
        IMAGE,
        "a 8",
    ),
    # activations that are not zero at zero, statistics over channels
    "sigmoid, summed": Form(
        lambda: Net(lambda self, x: self.o(self.a(x).sigmoid().sum(-1, keepdim=True)), a=L(8, 6), o=L(1, 3)),
        VECTOR,
        "a 6 inexact",
    ),
    "elu plus one, multiplied": Form(
        lambda: Net(lambda self, x: self.o((F.elu(self.a(x)) + 1) @ self.w), a=L(8, 6), w=learned(6, 4), o=L(4, 3)),
        VECTOR,
        "a 6, w 4",
    ),
    "mean over channels": Form(
        lambda: Net(lambda self, x: self.o(self.a(x).mean(-1, keepdim=True)), a=L(8, 6), o=L(1, 3)),
        VECTOR,
        "a 6 inexact",
    ),
    "layer norm": Form(lambda: S(L(8, 6), nn.LayerNorm(6), L(6, 3)), VECTOR, "0 6 inexact"),
    "rms norm": Form(lambda: S(L(8, 6), nn.RMSNorm(6), L(6, 3)), VECTOR, "0 6 inexact"),
    "rms norm by hand": Form(lambda: Net(root_mean_square, a=L(8, 6), g=learned(6), o=L(6, 3)), VECTOR, "a 6 inexact"),
    "divided by its norm": Form(
        lambda: Net(lambda self, x: self.o(self.a(x) / self.a(x).norm(dim=-1, keepdim=True)), a=L(8, 6), o=L(6, 3)),
        VECTOR,
        "a 6",
    ),
    "each channel divided by its norm": Form(
        lambda: Net(
            lambda self, x: self.o((self.a(x) / self.a(x).norm(dim=1, keepdim=True)).sum(1)), a=L(16, 6), o=L(6, 3)
        ),
        WORDS,
        "a 6 inexact",
    ),
    # one layer, several uses
    "called twice in a row": Form(
        lambda: Net(lambda self, x: self.o(self.h(self.h(self.i(x)).relu()).relu()), i=L(8, 6), h=L(6, 6), o=L(6, 3)),
        VECTOR,
        "i 6",
    ),
    "called on both sides": Form(
        lambda: Net(lambda self, x: self.o((self.a(x) - self.a(x.flip(0))).abs()), a=L(8, 6), o=L(6, 3)), VECTOR, "a 6"
    ),
    # weights that are no layer
    "gpt-2's conv1d": Form(
        lambda: Net(
            lambda self, x: torch.addmm(self.c, (x @ self.w + self.b).relu(), self.v),
            w=learned(8, 6),
            b=learned(6),
            v=learned(6, 3),
            c=learned(3),
        ),
        VECTOR,
        "w 6",
    ),
    "einsum": Form(
        lambda: Net(
            lambda self, x: torch.einsum("bld,hde,he->blh", self.a(x), self.w, self.v),
            a=L(16, 6),
            w=learned(3, 6, 4),
            v=learned(3, 4),
        ),
        WORDS,
        "a 6",
    ),
    "weights from a layer": Form(
        lambda: Net(
            lambda self, x: F.linear(x, self.h.weight.t() @ self.g.weight) @ self.o,
            h=L(6, 4),
            g=L(8, 4),
            o=learned(6, 3),
        ),
        VECTOR,
        "h 6",
    ),
    "weight norm": Form(
        lambda: S(nn.utils.parametrizations.weight_norm(L(8, 6)), nn.ReLU(), L(6, 4), nn.ReLU(), L(4, 3)),
        VECTOR,
        "0 6 inexact, 2 4",
    ),
    # tables and masks
    "a table in the code": Form(
        lambda: Net(lambda self, x: self.o(self.a(x) * torch.tensor([1.0, 2, 3, 4, 5, 6])), a=L(8, 6), o=L(6, 3)),
        VECTOR,
        "a 6",
        own=False,
    ),
    "a table in an attribute": Form(
        lambda: Net(lambda self, x: self.o(self.a(x) * self.t), a=L(8, 6), o=L(6, 3), t=draw(6)), VECTOR, "a 6"
    ),
    "tables in a list": Form(
        lambda: Net(lambda self, x: self.o(self.a(x) * self.t[0]), a=L(8, 6), o=L(6, 3), t=[draw(6)]),
        VECTOR,
        "a 6",
        own=False,
    ),
    "a mask over channels": Form(
        lambda: Net(lambda self, x: self.o(torch.where(self.m, self.a(x), -1.0)), a=L(8, 6), o=L(6, 3), m=draw(6) > 0),
        VECTOR,
        "a 6",
    ),
    # pieces
    "halves multiplied": Form(lambda: Net(halves, a=L(8, 12), o=L(6, 3)), VECTOR, "a 6"),
    "pieces of two sizes": Form(
        lambda: Net(pieces, a=L(8, 12), o=L(4, 3), p=L(8, 3)), VECTOR, "a:channel 4, a:channel#2 8", own=False
    ),
    "halves that stay equal": Form(
        lambda: Net(tie, a=L(8, 12), o=L(6, 3), p=L(6, 3)), VECTOR, "a:channel 6, a:channel#2 6"
    ),
    "counted from the end": Form(
        lambda: Net(ends, a=L(8, 12), o=L(4, 3), p=L(8, 3)), VECTOR, "a:channel 8, a:channel#2 4", own=False
    ),
    "every second": Form(
        lambda: Net(lambda self, x: self.o(self.b(self.a(x)[..., ::2]).relu()), a=L(8, 6), b=L(3, 4), o=L(4, 3)),
        VECTOR,
        "b 4",
    ),
    "repeated": Form(
        lambda: Net(lambda self, x: self.o(self.a(x).repeat(1, 3)), a=L(8, 4), o=L(12, 3)),
        VECTOR,
        "a 4, (consumer) 3",
        own=False,
    ),
    "each repeated": Form(
        lambda: Net(lambda self, x: self.o(self.a(x).repeat_interleave(3, -1)), a=L(8, 4), o=L(12, 3)),
        VECTOR,
        "a 4, (consumer) 3",
        own=False,
    ),
    "the largest of three": Form(
        lambda: Net(lambda self, x: self.o(self.a(x).view(-1, 4, 3).amax(-1)), a=L(8, 12), o=L(4, 3)),
        VECTOR,
        "a 4",
        own=False,
    ),
    "axes by other names": Form(
        lambda: Net(
            lambda self, x: self.o(self.a(x).swapaxes(1, 2).swapdims(1, 2).movedim(1, 2).mT), a=L(16, 6), o=L(6, 3)
        ),
        WORDS,
        "a 6",
    ),
    "broadcast": Form(
        lambda: Net(
            lambda self, x: self.o(self.a(x).mean(1, keepdim=True).broadcast_to(x.shape[0], 5, self.n) + self.a(x)),
            a=L(16, 6),
            o=L(6, 3),
            n=6,
        ),
        WORDS,
        "a 6",
    ),
    # in place
    "in place": Form(lambda: Net(in_place, a=L(8, 6), b=L(8, 6), g=learned(6), o=L(6, 3)), VECTOR, "a 6"),
    "a part in place": Form(
        lambda: Net(written, a=L(8, 6), b=L(8, 2), o=L(6, 3)), VECTOR, "a:channel 2, a:channel#2 4", own=False
    ),
    "poured into zeros": Form(lambda: Net(poured, a=L(8, 4), o=L(6, 3)), VECTOR, "a 4", own=False),
    # attention
    "heads": Form(lambda: Net(heads_first, **three(), scale=0.5), WORDS, "q:head 4, q:head_dim 4, v:head_dim 4"),
    "heads, implicit scale": Form(
        lambda: Net(heads_first, **three(), scale=None), WORDS, "q:head 4, q:head_dim 4, v:head_dim 4", own=False
    ),
    "heads alone, implicit scale": Form(
        lambda: Net(heads_first, **three(), scale=None), WORDS, "q:head 4", only={"kind": "head"}
    ),
    "C // heads": Form(lambda: Net(divided, **three()), WORDS, "q:head 4, q:head_dim 4, v:head_dim 4", own=False),
    "C // heads, heads alone": Form(lambda: Net(divided, **three()), WORDS, "q:head 4", only={"kind": "head"}),
    "packed": Form(lambda: Net(packed, qkv=L(16, 48), o=L(16, 3), heads=4), WORDS, "qkv:head 4, qkv:head_dim 4"),
    "packed, sizes in the code": Form(
        lambda: Net(hard_coded, qkv=L(16, 48), o=L(16, 3)), WORDS, "qkv:head 4, qkv:head_dim 4", own=False
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_code_is_cut_and_proven(form: str) -> None:
    torch.manual_seed(0)
    case = FORMS[form]
    half = halve(case.make(), case.inputs, **case.only)
    assert described(half.groups) == case.groups
    assert type(half.small) is (type(half.model) if case.own else GraphModel)
    assert list(half.small.state_dict()) == list(half.model.state_dict())
    assert half.proof.unwitnessed == ()
    if all(g.exact for g in half.groups):
        assert_same(half.zeroed, half.small, torch.cat([case.inputs, 2 * case.inputs[:1]]))


# Tracing touches nothing


class Restless(nn.Module):
    """Keeps what it computes, counts its calls twice, and switches gradients off on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.o = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("scale", torch.ones(6), persistent=False)
        self.table, self.calls, self.cache = draw(6), 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        y = self.norm(self.a(x)) * self.scale * self.table
        self.cache = y
        with torch.no_grad():
            shift = y.mean(0)
        return self.o(y - shift)


def test_tracing_cutting_and_proving_leave_the_model_as_it_was() -> None:
    model = Restless().train()
    model.norm.eval()
    model.a.bias.requires_grad_(False)
    model(VECTOR)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    held = dict(vars(model))
    flags = [m.training for m in model.modules()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    half = halve(model, VECTOR)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()
    assert all(vars(model)[key] is value for key, value in held.items())
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert type(half.small) is Restless
    assert half.small.calls == 1
    assert half.small.scale.shape == half.small.table.shape == (3,)
    assert "table" not in half.small.state_dict()


def test_each_module_of_the_half_trains_or_not_as_in_the_original() -> None:
    model = Restless().train()
    model.norm.eval()
    model.a.bias.requires_grad_(False)
    small = halve(model, VECTOR).small
    assert (small.training, small.a.training, small.norm.training) == (True, True, False)
    assert (small.a.weight.requires_grad, small.a.bias.requires_grad) == (True, False)


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_trains_or_not_as_the_original(training: bool) -> None:
    small = halve(Net(hard_coded, qkv=L(16, 48), o=L(16, 3)).train(training), WORDS).small
    assert isinstance(small, GraphModel)
    assert small.training == training


def test_gradients_stay_on_after_a_graph_that_switches_them_off_inside() -> None:
    model = Restless()
    half = halve(model, VECTOR)
    graph = graph_model(half.plan.graph, model, half.plan.left, {}).train()
    graph(VECTOR).sum().backward()
    assert torch.is_grad_enabled()
    assert all(p.grad is not None for p in graph.parameters())
    assert graph.tensor("seen") == 1


def noisy(self: Any, x: Tensor) -> Tensor:
    return F.dropout(hard_coded(self, self.norm(x)), 0.5, self.training)


def test_random_numbers_and_buffers_of_the_graph_follow_training_mode() -> None:
    model = Net(noisy, qkv=L(16, 48), o=L(16, 3), norm=nn.BatchNorm1d(5))
    small = halve(model, WORDS).small
    assert isinstance(small, GraphModel)
    before = small.tensor("norm.running_mean").clone()
    assert torch.equal(small.eval()(WORDS), small(WORDS))
    assert torch.equal(before, small.tensor("norm.running_mean"))
    assert not torch.equal(small.train()(WORDS), small(WORDS))
    assert not torch.equal(before, small.tensor("norm.running_mean"))


# Inputs and results


def mixed(self: Any, x: Tensor, *, mask: Tensor | None = None, more: Any = None) -> Any:
    y = self.a(x) if mask is None else self.a(x) * mask
    y = y + more["shift"][0] if more is not None else y
    pair = namedtuple("Pair", "left right")(self.o(y), y.sum(-1))
    return {"pair": pair, "list": [self.o(2 * y)], "none": None, "cache": object()}


def mixer() -> Net:
    return Net(mixed, a=L(8, 6), o=L(6, 3))


@pytest.mark.parametrize(
    "inputs",
    [
        VECTOR,
        (VECTOR,),
        {"x": VECTOR, "mask": draw(2, 1)},
        Inputs((VECTOR,), {"more": {"shift": [draw(2, 1)]}}),
        [VECTOR, draw(5, 8), draw(1, 8)],
    ],
    ids=["tensor", "tuple", "dict", "nested", "several"],
)
def test_calls_and_results_may_nest(inputs: Any) -> None:
    half = halve(mixer(), inputs)
    graph = graph_model(half.plan.graph, half.model, half.plan.left, {}).eval()
    for example in half.plan.graph.examples:
        own, found = (m(*example.args, **example.kwargs) for m in (half.small.eval(), graph))
        assert set(found) == {"pair", "list", "none"}
        assert found.none is None
        assert found.pair._fields == ("left", "right")
        torch.testing.assert_close(found.pair.left, own["pair"].left)
        torch.testing.assert_close(found["list"], own["list"])


def test_results_that_are_no_tensors_are_named() -> None:
    assert "results left out: output.cache (object)" in str(trace(mixer(), VECTOR))
    assert "pair, none, cache" in str(trace(mixer(), VECTOR, outputs=["list"]))


def positions(self: Any, ids: Tensor) -> Tensor:
    """A causal transformer block with learned positions, whose length comes from the input alone."""
    length = ids.shape[1]
    x = self.e(ids) + self.p[:length]
    q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
    q = q.unflatten(-1, (4, -1)).flatten(-2) if self.coded else q  # the head dimension as a number in the code
    causal = torch.full((length, length), float("-inf")).triu(1)
    y = ((q @ k.mT * 0.5 + causal).softmax(-1) @ v).transpose(1, 2).flatten(2)
    return self.h(F.gelu(self.f(x + self.o(y))))


@pytest.mark.parametrize("coded", [False, True], ids=["own class", "graph"])
def test_another_length_than_the_traced_one(coded: bool) -> None:
    torch.manual_seed(0)
    parts = {"e": nn.Embedding(20, 16), "qkv": L(16, 48), "o": L(16, 16), "f": L(16, 12), "h": L(12, 5)}
    half = halve(
        Net(positions, **parts, p=learned(30, 16), heads=4, coded=coded), IDS, kind=["head", "head_dim", "channel"]
    )
    assert isinstance(half.small, GraphModel) == coded
    assert_same(half.zeroed, half.small, torch.arange(33).view(3, 11) % 20)


@pytest.mark.parametrize("batch", [1, 2])
def test_an_example_of_any_batch_leaves_the_batch_free(batch: int) -> None:
    half = halve(Net(hard_coded, qkv=L(16, 48), o=L(16, 3)), draw(batch, 5, 16))
    assert isinstance(half.small, GraphModel)
    assert_same(half.zeroed, half.small, draw(7, 5, 16))
    assert_same(half.zeroed, half.small, draw(1, 3, 16))


def test_a_model_that_holds_its_batch_size_is_proven_at_that() -> None:
    half = halve(Net(lambda self, x: self.o(self.a(x).reshape(2, 6)), a=L(8, 6), o=L(6, 3)), VECTOR)
    assert half.proof.errors["zeroed"] < 1e-9


def test_infinite_results_agree() -> None:
    mask = torch.tensor([True, False, False])
    half = halve(Net(lambda self, x: self.o(self.a(x)).masked_fill(mask, -torch.inf), a=L(8, 6), o=L(6, 3)), VECTOR)
    assert half.proof.errors["zeroed"] < 1e-9


def test_a_state_no_call_reaches_is_named_and_left_whole() -> None:
    model = Net(lambda self, x: self.o(self.a(x)), a=L(8, 6), o=L(6, 3), never=L(6, 6))
    half = halve(model, VECTOR)
    assert half.plan.graph.unreached == ("never.weight", "never.bias")
    assert torch.equal(half.small.never.weight, model.never.weight)


def auxiliary(self: Any, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    y = self.a(x)
    if self.training:
        side = self.b(y).view(-1, self.wide)
        return self.o(y), self.c(side) * x.new_ones(self.steps).sum()
    return self.o(y)


def test_what_only_training_reaches_is_cut_too() -> None:
    """Two attributes of one value, of which only one is a size that changes: a check in eval mode cannot tell."""
    torch.manual_seed(0)
    half = halve(Net(auxiliary, a=L(8, 6), b=L(6, 6), c=L(6, 2), o=L(6, 3), wide=6, steps=6), VECTOR)
    assert described(half.groups) == "a 6, b 6"
    assert half.proof.unwitnessed == ("b",)
    assert (half.small.wide, half.small.steps) == (3, 6)
    for expected, found in zip(half.zeroed.train()(VECTOR), half.small.train()(VECTOR), strict=True):
        torch.testing.assert_close(found, expected)
    sum(part.sum() for part in half.small(VECTOR)).backward()
    assert half.small.c.weight.grad is not None


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda y: F.dropout(y, 0.3),
    "dropout in place": lambda y: F.dropout(y * 1, 0.3, inplace=True),
    "alpha dropout": lambda y: F.alpha_dropout(y, 0.3, training=True),
    "stochastic depth": lambda y: y * y.new_empty(len(y), 1).bernoulli_(0.7).div_(0.7),
    "stochastic depth by rand": lambda y: y * (0.7 + torch.rand(len(y), 1)).floor() / 0.7,
    "noise": lambda y: y + torch.randn_like(y),
    "noise in place": lambda y: y + torch.empty_like(y).normal_(),
    "noise of a size": lambda y: y * torch.randn(y.shape),
    "uniform noise": lambda y: y + torch.empty_like(y).uniform_(-1, 1),
    "bernoulli": lambda y: torch.bernoulli(y.sigmoid()) * y,
    "shuffled batch": lambda y: y[torch.randperm(len(y))],
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_may_be_drawn_in_training_alone(name: str) -> None:
    """The proof puts constants in their place; in eval mode they are refused, for nothing could be proven."""
    torch.manual_seed(0)
    drawing = DRAWS[name]
    parts = {"a": L(8, 6), "o": L(6, 3)}
    half = halve(Net(lambda self, x: self.o(drawing(self.a(x)) if self.training else self.a(x)), **parts), VECTOR)
    assert half.proof.errors["train"] < 1e-9
    half.small.train()(VECTOR).sum().backward()
    with pytest.raises(TraceError, match=r"draws random numbers in eval mode: aten\.\w+"):
        trace(Net(lambda self, x: self.o(drawing(self.a(x))), **parts), VECTOR)


# State


def test_tied_weights_stay_tied() -> None:
    model = Net(
        lambda self, i: self.o(self.h(self.e(i)).relu()), e=nn.Embedding(20, 8), h=L(8, 8), o=L(8, 20, bias=False)
    )
    model.o.weight = model.e.weight
    half = halve(model, IDS)
    graph = graph_model(half.plan.graph, model, half.plan.left, {})
    assert half.small.e.weight is half.small.o.weight
    assert graph.tensor("e.weight") is graph.tensor("o.weight")
    assert half.small.e.weight.shape == (20, 4)
    assert half.small.o.in_features == 4


def test_batch_norm_statistics_go_with_their_channels() -> None:
    model = S(conv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *end(8))
    model[1].running_mean.copy_(torch.arange(8.0))
    model[1].running_var.copy_(torch.arange(8.0) + 1)
    half = halve(model, IMAGE)
    kept = half.plan.keep["0"].nonzero().flatten()
    assert torch.equal(half.small[1].running_mean, kept.float())
    assert torch.equal(half.small[1].running_var, kept.float() + 1)
    assert half.small[1].num_features == 4


@pytest.mark.parametrize("own", [True, False])
def test_the_memory_format_survives(own: bool) -> None:
    model = S(conv(3, 8, 3), nn.BatchNorm2d(8), conv(8, 4, 3), *end(4)).to(memory_format=torch.channels_last)
    images = IMAGE.to(memory_format=torch.channels_last)
    half = halve(model, images)
    small = half.small if own else graph_model(half.plan.graph, model, half.plan.left, {})
    weights = dict(small.named_parameters())
    assert all(weights[f"{i}.weight"].is_contiguous(memory_format=torch.channels_last) for i in (0, 2))
    assert not any(weights[f"{i}.weight"].is_contiguous() for i in (0, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_survives(dtype: torch.dtype) -> None:
    half = halve(S(conv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *end(8)).to(dtype), IMAGE.to(dtype))
    assert {p.dtype for p in half.small.parameters()} == {dtype}
    assert half.small.eval()(IMAGE.to(dtype)).dtype == dtype


def test_weights_of_pixel_shuffle_go_in_blocks() -> None:
    half = halve(S(conv(3, 16, 3), nn.PixelShuffle(2), *end(4)), IMAGE)
    kept = half.plan.keep["0"].nonzero()
    rows = (kept * 4 + torch.arange(4)).flatten()
    assert torch.equal(half.small[0].weight, half.model[0].weight[rows])


def test_groups_of_a_convolution_and_channels_within_them() -> None:
    half = halve(S(conv(3, 8, 1), conv(8, 12, 3, groups=4), conv(12, 12, 1, groups=12), *end(12)), IMAGE)
    grouped, depthwise = half.small[1], half.small[2]
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (2, 2, 2)
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (2, 2, 2)
    assert grouped.weight.shape[:2] == depthwise.weight.shape[:2] == (2, 1)


@pytest.mark.parametrize(("exact", "shape"), [(True, (2, 4)), (False, (4, 4))])
def test_group_norm_loses_whole_groups_or_channels_of_each(exact: bool, shape: tuple[int, int]) -> None:
    half = halve(S(conv(3, 8, 1), nn.GroupNorm(4, 8), nn.ReLU(), *end(8)), IMAGE, exact=exact)
    norms = [m for m in half.small.modules() if isinstance(m, nn.GroupNorm)]
    assert [(m.num_groups, m.num_channels) for m in norms] == [shape]
    assert ("zeroed" in half.proof.errors) == exact


def test_halves_of_one_layer_keep_equally_many_units_but_not_the_same() -> None:
    half = halve(Net(tie, a=L(8, 12), o=L(6, 3), p=L(6, 3)), VECTOR)
    first, second = half.plan.keep.values()
    assert half.groups.ties == (("a:channel", "a:channel#2"),)
    assert first.sum() == second.sum() == 3
    kept = torch.cat([first.nonzero(), 6 + second.nonzero()]).flatten()
    assert torch.equal(half.small.a.weight, half.model.a.weight[kept])


def test_an_implicit_attention_scale_stays_that_of_the_full_head() -> None:
    half = halve(Net(heads_first, **three(), scale=None), WORDS)
    assert isinstance(half.small, GraphModel)
    scales = [n.bound()["scale"] for n in half.small.programs[0].nodes if "attention" in n.op]
    assert scales == [0.5]


def test_an_integer_that_stands_for_two_sizes_cannot_be_cut() -> None:
    both = Net(lambda self, x: self.o(self.a(x.view(-1, self.n)).view(-1, self.n).relu()), a=L(8, 8), o=L(8, 3), n=8)
    assert isinstance(halve(both, VECTOR).small, GraphModel)


def test_an_integer_with_several_candidates_is_found_by_trying() -> None:
    """Four heads of four: which of the two counts an attribute becomes, only the result can tell."""
    model = Net(heads_first, **three(), scale=0.5)
    groups = group(trace(model, WORDS))
    keep = {g.name: torch.arange(4) < (3 if g.kind == "head" else 2) for g in groups}
    small = shrink(model, Plan(groups, keep))
    assert (type(small), small.heads, small.dim) == (Net, 3, 2)


def test_a_layer_that_reads_and_makes_the_same_units_loses_rows_and_columns() -> None:
    half = halve(FORMS["called twice in a row"].make(), VECTOR)
    kept = half.plan.keep["i"].nonzero().flatten()
    assert torch.equal(half.small.h.weight, half.model.h.weight[kept][:, kept])


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_forward_hooks_warn(register: str) -> None:
    model = S(L(8, 6), nn.ReLU(), L(6, 3))
    getattr(model[0], register)(lambda *_: None)
    with pytest.warns(UserWarning, match="forward hooks"):
        halve(model, VECTOR)


def wrapped_in_compile(model: nn.Module) -> nn.Module:
    return torch.compile(model)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile, about its own code
@pytest.mark.parametrize("wrap", [wrapped_in_compile, nn.DataParallel])
def test_wrapped_models_are_unwrapped(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(S(L(8, 6), nn.ReLU(), L(6, 3)))
    groups = group(trace(model, VECTOR))
    plan = allocate(groups, {"0": torch.arange(6.0)}, Budget("units", at_most=0.5), scope="layer")
    small = shrink(model, plan)
    assert type(small) is S
    assert verify(model, torch.compile(small), plan).errors["zeroed"] < 1e-9


# What cannot be followed


@torch.library.custom_op("traps::twist", mutates_args=())
def twist(x: Tensor) -> Tensor:
    """An operation prunus cannot know."""
    return x.flip(-1).clone()


@twist.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("traps::twist_", mutates_args=("x",))
def twist_(x: Tensor) -> None:
    x.copy_(x.flip(-1))


@twist_.register_fake
def _(x: Tensor) -> None:
    return None


def twisted(self: Any, x: Tensor) -> Tensor:
    return self.o(twist(self.b(self.a(x).relu())))


def twisted_in_place(self: Any, x: Tensor) -> Tensor:
    y = self.b(self.a(x).relu())
    twist_(y)
    return self.o(y)


@pytest.mark.parametrize(("run", "op"), [(twisted, "traps.twist.default"), (twisted_in_place, "traps.twist_.default")])
def test_an_unknown_operation_fixes_what_it_touches_and_is_named(run: Callable[..., Tensor], op: str) -> None:
    half = halve(Net(run, a=L(8, 6), b=L(6, 4), o=L(4, 3)), VECTOR)
    assert described(half.groups) == "a 6"
    assert {u.op for u in half.plan.graph.unruled} == {op}
    assert half.plan.graph.fixed["b.weight[0]"] == f"{op} has no rule"
    assert half.plan.graph.fixed["o.weight[1]"] == f"{op} has no rule"
    assert_same(half.zeroed, half.small, draw(3, 8))


def test_a_rule_takes_the_arguments_of_its_operation() -> None:
    """By their names, in every overload on tensors; another name would be an error of ours in the midst of tracing."""
    wrong: list[str] = []
    for name, rule in RULES.items():
        packet = getattr(torch.ops.aten, name.partition(".")[0], None)
        for overload in packet.overloads() if packet is not None else ():
            schema = getattr(packet, overload)._schema
            first, last = str(schema.arguments[0].type), str(schema.returns[-1].type) if schema.returns else ""
            on_tensors = "Tensor" in first and "Tensor" in last and not any(a.is_out for a in schema.arguments)
            try:
                inspect.signature(rule).bind(None, **{a.name: None for a in schema.arguments})
            except TypeError:
                wrong += [f"{name}.{overload}"] if on_tensors and f"{name}.{overload}" not in UNLIKE else []
    assert wrong == []


# A list of indices instead of an equation, and a result whose size depends on values: neither is ever captured.
UNLIKE = ("einsum.sublist", "repeat_interleave.Tensor")


FIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "a softmax runs over it": lambda y: y.softmax(-1),
    "an extremum or another statistic runs over it": lambda y: y.amax(-1, keepdim=True).expand(-1, 6),
    "its order counts": lambda y: y.cumprod(-1),
    "it is indexed by a tensor": lambda y: y[:, torch.arange(6)],
    "it is sliced with a stride": lambda y: y[:, ::2].repeat(1, 2),
    "one index of it is selected": lambda y: y[:, 0, None].expand(-1, 6),
    "its indices are taken apart": lambda y: torch.stack(y.unbind(-1), -1),
    "it is padded with other values than zero": lambda y: F.pad(y, (1, 0), value=1.0)[:, :6],
    "it is sorted": lambda y: y.sort(-1).values,
}


@pytest.mark.parametrize("reason", FIXING)
def test_what_looks_at_positions_fixes_an_axis_and_says_so(reason: str) -> None:
    graph = trace(Net(lambda self, x: self.o(FIXING[reason](self.a(x))), a=L(8, 6), o=L(6, 3)), VECTOR)
    assert reason in graph.fixed["a.weight[0]"]
    assert reason in graph.fixed["a.bias[0]"]


def test_nothing_to_prune_says_why() -> None:
    graph = trace(S(L(8, 6), nn.Softmax(-1), L(6, 3)), VECTOR)
    with pytest.raises(GroupError, match=r"every axis is fixed:\n  0\.weight\[0\]: a softmax runs over it"):
        group(graph)


class Refusal(NamedTuple):
    model: Callable[[], nn.Module]
    inputs: Any
    match: str


REFUSALS = {
    "inputs it refuses": Refusal(lambda: L(8, 6), draw(2, 5), r"refuses the example inputs \(0: \(2, 5\)"),
    "inputs of another kind": Refusal(lambda: L(8, 6), "x", "expected a tensor, a tuple"),
    "no inputs": Refusal(lambda: L(8, 6), [], "expected at least one example"),
    "no tensor": Refusal(lambda: Net(lambda self, x: object(), a=L(8, 6)), VECTOR, "returned no tensor"),
    "attention that drops in eval mode": Refusal(
        lambda: Net(lambda self, x: F.scaled_dot_product_attention(x, x, self.a(x), dropout_p=0.1), a=L(16, 16)),
        WORDS,
        "scaled_dot_product_attention",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_traced_says_why(name: str) -> None:
    refusal = REFUSALS[name]
    with pytest.raises(TraceError, match=refusal.match):
        trace(refusal.model(), refusal.inputs)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_script_module_is_refused() -> None:
    with pytest.raises(TraceError, match="ScriptModule"):
        trace(torch.jit.script(L(8, 6)), VECTOR)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantized_model_is_refused() -> None:
    model = Net(lambda self, x: x, q=torch.quantize_per_tensor(VECTOR, 0.1, 0, torch.qint8))
    with pytest.raises(TraceError, match="'q' is quantized already"):
        trace(model, VECTOR)


def test_results_that_are_not_there_are_refused() -> None:
    with pytest.raises(
        TraceError,
        match=r"outputs=\['logits'\] names entries .* returned a mapping with entries pair, list, none, cache",
    ):
        trace(mixer(), VECTOR, outputs=["logits"])


# What a proof says


def test_a_group_that_does_not_reach_the_result_is_not_witnessed() -> None:
    model = Net(lambda self, x: self.o(self.a(x)) + 0 * self.p(self.b(x)), a=L(8, 6), b=L(8, 6), o=L(6, 3), p=L(6, 3))
    assert halve(model, VECTOR).proof.unwitnessed == ("b",)


def test_a_result_that_no_cut_reaches_proves_nothing() -> None:
    model = Net(lambda self, x: x + 0 * self.p(self.b(x)), b=L(8, 6), p=L(6, 8))
    with pytest.raises(ProofError, match="blind"):
        halve(model, VECTOR)


@pytest.mark.parametrize("form", ["sigmoid, summed", "mean over channels", "layer norm", "rms norm by hand"])
def test_inexact_says_why_and_zeroing_is_indeed_something_else(form: str) -> None:
    torch.manual_seed(0)
    half = halve(FORMS[form].make(), VECTOR)
    (only,) = half.groups
    assert only.why
    with pytest.raises(AssertionError):
        assert_same(half.zeroed, half.small, VECTOR)


def test_a_wrong_model_is_refused() -> None:
    half = halve(S(L(8, 6), nn.ReLU(), L(6, 3)), VECTOR)
    with torch.no_grad():
        half.small[2].weight.copy_(half.small[2].weight.flip(1))
    with pytest.raises(ProofError, match=r"'2\.weight' of the smaller model is not what the plan cuts it to"):
        verify(half.model, half.small, half.plan)


def test_a_module_that_computes_something_else_is_refused() -> None:
    half = halve(Net(lambda self, x: self.o(self.a(x) * self.k), a=L(8, 6), o=L(6, 3), k=2.0), VECTOR)
    half.small.k = 3.0
    with pytest.raises(ProofError, match="Check 'module' failed"):
        verify(half.model, half.small, half.plan)


# What review found


@pytest.mark.parametrize("dim", [1, 2])
def test_the_op_glu_keeps_its_halves_together(dim: int) -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.o(F.glu(h, 2) if dim == 2 else F.glu(h.transpose(1, 2), 1).transpose(1, 2))

    half = halve(Net(run, a=L(16, 12), o=L(6, 3)), WORDS)
    (only,) = half.groups
    assert only.size == 6
    assert only.exact
    assert half.small.a.out_features == 6
    assert_same(half.zeroed, half.small, WORDS)


def test_results_kept_in_lists_and_dicts_can_be_copied() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        self.kept["h"] = [(h,)]
        self.kept["itself"] = self.kept
        return self.o(h)

    model = Net(run, a=L(8, 6), o=L(6, 3), kept={})
    model(VECTOR)
    assert half_widths(model) == 3


def half_widths(model: nn.Module) -> int:
    groups = group(trace(model, VECTOR))
    (only,) = groups
    return shrink(model, Plan(groups, {only.name: torch.arange(6) < 3})).a.out_features


def test_a_refused_input_is_told_once_and_not_logged() -> None:
    logger, records = logging.getLogger("torch._subclasses.fake_tensor"), list[logging.LogRecord]()
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        with pytest.raises(TraceError, match="refuses the example inputs"):
            trace(nn.Linear(3, 4), draw(2, 5))
    finally:
        logger.removeHandler(handler)
    assert not records
    assert not logger.disabled


def test_a_dict_that_does_not_fit_is_explained() -> None:
    with pytest.raises(TraceError, match=r"a dict is read as keyword arguments; for one dict argument pass \(\{"):
        trace(Net(lambda self, batch: self.a(batch["x"]), a=L(8, 6)), {"x": VECTOR})
    with pytest.raises(TraceError) as plain:
        trace(L(9, 6), VECTOR)
    assert "one dict argument" not in str(plain.value)


def test_the_reference_and_the_draws_stay_on_the_device_of_the_model() -> None:
    """`meta` stands for any device that is not the CPU."""
    from prunus.apply.redraw import redraw_inputs, redrawer
    from prunus.apply.witness import _weighted
    from prunus.graph import reference
    from prunus.graph.see import Place

    place, mask = Place("input"), torch.tensor([True, True, False, False])
    node = Node("n", "aten.layer_norm.default")
    x = torch.ones(2, 4, 4, device="meta")
    bound = {"input": x, "normalized_shape": [4], "weight": None, "bias": None, "eps": 1e-5, "num_groups": 2}
    reference._mask_argument(bound, place, {2: mask}, 0.0)
    assert bound["input"].is_meta
    assert reference._layer_norm(node, bound, {place: {2: mask}}).is_meta
    assert reference._group_norm(node, bound, {place: {1: mask}}).is_meta
    model = S(L(8, 6), nn.ReLU(), L(6, 3))
    draw_one = redrawer(trace(model, VECTOR), {n: p.to("meta") for n, p in model.state_dict().items()})
    assert draw_one("0.weight").is_meta
    assert draw_one("0.bias").is_meta
    for value in (x, torch.ones(2, 4, dtype=torch.int64, device="meta")):
        assert redraw_inputs(Inputs((value,), {})).args[0].is_meta
    assert _weighted(x).is_meta


def test_a_graph_model_keeps_its_constants_where_they_are() -> None:
    table = draw(6)
    model = halve(Net(lambda self, x: self.o(self.a(x) + torch.tensor(table.tolist())), a=L(8, 6), o=L(6, 3)), VECTOR)
    made = graph_model(model.plan.graph, model.model, model.plan.left, model.plan.groups.alive)
    before = dict(made._constants)
    assert before
    moved = made._constants_on({("args", 0): VECTOR.to("meta")})
    assert all(t.is_meta for t in moved.values())
    assert moved is made._constants_on({("args", 0): VECTOR.to("meta")})
    assert all(made._constants[name] is t for name, t in before.items())


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "masked": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.2),
    "parametrized": lambda layer: register_parametrization(layer, "weight", Scaled()),
}


@pytest.mark.parametrize("form", COMPUTED.values(), ids=COMPUTED)
def test_a_layer_whose_weight_is_computed_says_its_new_sizes(form: Callable[[nn.Module], nn.Module]) -> None:
    """A weight that is not kept as `weight`: masked (`weight_orig`), or made by a parametrization."""
    torch.manual_seed(0)
    model = nn.Sequential(form(nn.Conv2d(3, 16, 3)), nn.ReLU(), form(nn.ConvTranspose2d(16, 4, 3))).eval()
    groups = group(trace(model, IMAGE))
    plan = allocate(groups, {g.name: torch.arange(16.0) for g in groups}, Budget("units", 0.5))
    small = shrink(model, plan)
    assert isinstance(small, nn.Sequential)
    assert (small[0].out_channels, small[2].in_channels, small[2].out_channels) == (8, 8, 4)


def test_the_integers_of_a_layer_follow_no_factor_of_its_weight() -> None:
    class Doubled(nn.Module):
        def forward(self, half: Tensor) -> Tensor:
            return torch.cat([half, half], 1)

    first, last = nn.Linear(8, 12), nn.Linear(12, 4)
    last.weight = nn.Parameter(torch.randn(4, 6))
    register_parametrization(last, "weight", Doubled(), unsafe=True)
    edits = [*surgery._known_layer("", last, {"parametrizations.weight.original": torch.ones(4, 3)}, {})]  # pyright: ignore[reportPrivateUsage]
    assert (first.out_features, edits) == (12, [])
