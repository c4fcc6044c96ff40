"""Random small networks as ordinary modules: `recipes()` draws the plain data of one, `build` makes it.

A recipe is what hypothesis shrinks and prints; paste a failing one into `build` to have the network again. Each step
names a block and gives it three small integers to choose with. A block sees the shape that reaches it, so that every
recipe runs; where a choice does not fit a shape, the block takes one that does.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTHS = (2, 3, 4, 6, 8, 12)
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.GELU,
    nn.Sigmoid,
    nn.ELU,
    nn.Hardswish,
    nn.Softplus,
    nn.Tanh,
)

Shape: TypeAlias = tuple[int, ...]
Block: TypeAlias = Callable[[Shape, int, int, int], nn.Module]
"""(shape that reaches it, three integers in 0..11) -> a module that takes it."""


class Step(NamedTuple):
    """One block and what it chooses with."""

    block: str
    a: int = 0
    b: int = 0
    c: int = 0


class Recipe(NamedTuple):
    """An input (`image`, `features` or `ids`) and the steps it goes through; a linear or 1x1 layer ends them."""

    input: str
    steps: tuple[Step, ...]


def divisor(choice: int, *numbers: int) -> int:
    """One of the common divisors."""
    common = gcd(*numbers)
    every = [d for d in range(1, common + 1) if common % d == 0]
    return every[choice % len(every)]


def width(choice: int) -> int:
    return WIDTHS[choice % len(WIDTHS)]


class Fn(nn.Module):
    """A function of the input and of the results of some modules, so that blocks can be said in a line."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self._modules)


def parameter(*shape: int) -> nn.ParameterList:
    """One learned tensor, as a module that can be indexed."""
    return nn.ParameterList([nn.Parameter(torch.randn(shape))])


# Blocks of feature maps, (n, c, h, w)


def conv(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    kernel, stride = (1, 3)[b % 2], 2 if b % 3 == 2 and shape[-1] >= 4 else 1
    return nn.Conv2d(
        shape[1],
        width(a),
        kernel,
        stride,
        padding=kernel // 2,
        groups=divisor(c, shape[1], width(a)),
        bias=b % 4 < 2,
        padding_mode="reflect" if b == 11 and shape[-1] > 1 else "zeros",
    )


def depthwise(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    return nn.Conv2d(shape[1], shape[1] * (1 + a % 2), 3, padding=1, groups=shape[1], bias=b % 2 == 0)


def transposed(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    size = 2 if shape[-1] <= 4 else 1
    return nn.ConvTranspose2d(
        shape[1], width(a), size, stride=size, groups=divisor(c, shape[1], width(a)), bias=b % 2 == 0
    )


def norm(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    channels = shape[1]
    if a % 4 == 0:
        return nn.BatchNorm2d(channels, affine=b % 4 > 0)
    if a % 4 == 1:
        return nn.GroupNorm(divisor(b, channels), channels)
    if a % 4 == 2 and shape[-1] * shape[-2] > 1:
        return nn.InstanceNorm2d(channels, affine=b % 2 == 0)
    last = lambda x, layer: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # noqa: E731
    return Fn(last, layer=nn.LayerNorm(channels))


def activation(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    return ACTIVATIONS[a % len(ACTIVATIONS)]() if b % 6 else nn.PReLU(shape[1] if b else 1)


def pair(shape: Shape, a: int, b: int, c: int, out: int | None = None) -> nn.Module:
    """conv, norm, activation, conv; from and to the channels that reach it unless `out` is given."""
    hidden = width(a)
    return nn.Sequential(
        nn.Conv2d(shape[1], hidden, 1 + 2 * (b % 2), padding=b % 2, groups=divisor(c, shape[1], hidden), bias=False),
        norm((shape[0], hidden, *shape[2:]), b, c, 0),
        ACTIVATIONS[c % len(ACTIVATIONS)](),
        nn.Conv2d(hidden, out or shape[1], 1),
    )


def residual(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    if c % 4 == 3:  # stochastic depth without the chance: the branch is scaled for each channel
        scaled = lambda x, body, scale: x + body(x) * scale[0]  # noqa: E731
        return Fn(scaled, body=pair(shape, a, b, c), scale=parameter(shape[1], 1, 1))
    if c % 4 == 2:  # projected shortcut
        out = width(b)
        both = lambda x, body, short: F.relu(short(x) + body(x))  # noqa: E731
        return Fn(both, body=pair(shape, a, b, c, out), short=nn.Conv2d(shape[1], out, 1))
    return Fn(lambda x, body: x + body(x), body=pair(shape, a, b, c))


def concat(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    body = pair(shape, a, b, c, width(c))
    if shape[1] > 12:  # keep it small
        return body
    if b % 3 == 0:
        return Fn(lambda x, body: torch.cat([x, body(x)], 1), body=body)
    if b % 3 == 1:
        return Fn(lambda x, body: torch.cat([body(x), x, x], 1), body=body)
    return Fn(lambda x, body: torch.cat([y := body(x), y], 1), body=body)


def split(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """ShuffleNet's halves, sizes given or not, or a gate; pieces of unlike sizes where channels are odd."""
    at = 1 + a % (shape[1] - 1) if shape[1] > 1 else 1
    if shape[1] % 2 == 0 and b % 3 == 0:
        body = pair((shape[0], shape[1] // 2, *shape[2:]), a, b, c)
        return Fn(lambda x, body: torch.cat([(y := x.chunk(2, 1))[0], body(y[1])], 1), body=body)
    if shape[1] % 2 == 0 and b % 3 == 1:
        return Fn(lambda x: (y := x.chunk(2, dim=1))[0] * torch.sigmoid(y[1]))
    if shape[1] == 1:
        return nn.ReLU()
    if b % 2:
        sizes = [at, shape[1] - at]
        return Fn(lambda x: torch.cat([(y := x.split(sizes, 1))[1], F.relu(y[0])], 1))
    if c % 2:
        return Fn(lambda x: x[:, :at])
    return Fn(lambda x: torch.cat([x[:, at:], x[:, :at].tanh()], 1))


def shuffle(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    groups = divisor(a, shape[1])
    if b % 3 == 0:
        return nn.ChannelShuffle(groups)

    def by_view(x: Tensor) -> Tensor:
        n, channels, h, w = x.shape
        if b % 3 == 1:
            return x.reshape(n, groups, channels // groups, h, w).transpose(1, 2).reshape(n, channels, h, w)
        return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)

    return Fn(by_view)


def gate(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """Squeeze and excitation, by linear layers or by 1x1 convolutions."""
    channels, hidden = shape[1], width(a)
    act = ACTIVATIONS[c % len(ACTIVATIONS)]()
    if b % 2:
        squeeze = nn.Sequential(nn.Linear(channels, hidden), act, nn.Linear(hidden, channels), nn.Sigmoid())
        return Fn(lambda x, squeeze: x * squeeze(x.mean((2, 3)))[:, :, None, None], squeeze=squeeze)
    ends = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
    excite = nn.Sequential(nn.AdaptiveAvgPool2d(1), ends[0], act, ends[1], nn.Hardsigmoid())
    return Fn(lambda x, excite: excite(x) * x, excite=excite)


def pad(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """The parameter-free shortcut of a ResNet: positions skipped, zero channels around."""
    before, after = a % 3, 1 + b % 3
    stride = 2 if c % 2 and shape[-1] >= 4 else 1
    out = shape[1] + before + after
    body = nn.Conv2d(shape[1], out, 3, stride, padding=1)
    short = lambda x, body: body(x) + F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, after))  # noqa: E731
    return Fn(short, body=body)


def pool(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    if shape[-1] < 2 or shape[-2] < 2:
        return nn.Upsample(scale_factor=2, mode="nearest")
    return (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(2))[a % 4]


def pixels(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """Space to depth or back: by the operation, or by views."""
    _, channels, h, w = shape
    if channels % 4 == 0 and a % 2 == 0 and h * w <= 16:
        return nn.PixelShuffle(2)
    if h % 2 or w % 2 or channels > 6:
        return nn.Hardswish()
    if a % 3 == 0:
        return nn.PixelUnshuffle(2)

    def to_depth(x: Tensor) -> Tensor:
        y = x.reshape(x.shape[0], channels, h // 2, 2, w // 2, 2)
        order = (0, 1, 3, 5, 2, 4) if b % 2 else (0, 3, 5, 1, 2, 4)
        return y.permute(order).reshape(x.shape[0], 4 * channels, h // 2, w // 2)

    return Fn(to_depth)


def twice(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """One convolution used at two places, perhaps with a norm for each."""
    layer = nn.Conv2d(shape[1], shape[1], 3, padding=1, groups=divisor(c, shape[1]))
    if a % 2:
        return Fn(lambda x, layer: layer(F.relu(layer(x))), layer=layer)
    norms = {name: nn.BatchNorm2d(shape[1]) for name in ("first", "second")}
    return Fn(lambda x, layer, first, second: x + second(layer(F.gelu(first(layer(x))))), layer=layer, **norms)


def scale(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """Learned tensors in plain arithmetic, and channels that meet one of their own."""
    ones = [1] * (len(shape) - 2)
    if a % 3 == 0:
        gains = {"gain": parameter(shape[1], *ones), "shift": parameter(1, shape[1], *ones)}
        return Fn(lambda x, gain, shift: torch.addcmul(shift[0], x, gain[0]), **gains)
    if a % 3 == 1:
        return Fn(lambda x: x * torch.sigmoid(x[:, :1]))
    return Fn(lambda x: x / (1 + x.abs().mean(1, keepdim=True)))


IMAGE: dict[str, Block] = {
    "conv": conv,
    "depthwise": depthwise,
    "transposed": transposed,
    "norm": norm,
    "activation": activation,
    "residual": residual,
    "concat": concat,
    "split": split,
    "shuffle": shuffle,
    "gate": gate,
    "pad": pad,
    "pool": pool,
    "pixels": pixels,
    "twice": twice,
    "scale": scale,
}


# From feature maps to features


def patches(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """Positions become tokens: (n, h·w, c)."""
    if a % 2:
        return Fn(lambda x: x.flatten(2).transpose(1, 2))
    return Fn(lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]))


def pooled(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    if a % 2:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Fn(lambda x: x.mean([2, 3]))


def flat(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    if a % 2:
        return Fn(lambda x: x.reshape(x.size(0), -1))
    return nn.Flatten()


BRIDGE: dict[str, Block] = {"patches": patches, "pooled": pooled, "flat": flat}


# Blocks of features, (n, d) or (n, l, d)


class RMSNorm(nn.Module):
    """Written out, as in transformers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Conv1D(nn.Module):
    """GPT-2's linear layer, whose weight is (in, out)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.out = out
        self.weight = nn.Parameter(torch.randn(width, out) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.out)


class Attention(nn.Module):
    """Heads by separate projections, keys and values perhaps fewer; the product fused, written out, folded, einsum."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, core: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.core = heads, kv_heads, head_dim, core
        self.scale = head_dim**-0.5
        self.q = nn.Linear(width, heads * head_dim, bias=bias)
        self.k = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(width, kv_heads * head_dim, bias=bias)
        self.o = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q = self.q(x).view(n, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(n, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(n, length, self.kv_heads, self.head_dim).transpose(1, 2)
        if self.core % 4 == 0:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kv_heads != self.heads)
        else:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
            y = self.mix(q, k, v)
        return self.o(y.transpose(1, 2).reshape(n, length, -1))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.core % 4 == 1:
            return torch.softmax(q @ k.transpose(-2, -1) * self.scale, -1) @ v
        if self.core % 4 == 2:
            return torch.einsum("nhqk,nhkd->nhqd", (torch.einsum("nhqd,nhkd->nhqk", q, k) * self.scale).softmax(-1), v)
        shape = q.shape
        q, k, v = (t.reshape(-1, *t.shape[2:]) for t in (q, k, v))
        return torch.bmm(F.softmax(torch.bmm(q, k.mT) * self.scale, dim=-1), v).view(shape)


class PackedAttention(nn.Module):
    """Queries, keys and values from one projection, taken apart in one of three ways."""

    def __init__(self, width: int, heads: int, head_dim: int, how: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.inner, self.how, self.fused = heads, heads * head_dim, how, fused
        self.qkv = nn.Linear(width, 3 * self.inner)
        self.o = nn.Linear(self.inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        if self.how % 3 == 0:
            packed = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = packed.unbind(0)
        else:
            qkv = self.qkv(x)
            pieces = qkv.chunk(3, dim=-1) if self.how % 3 == 1 else qkv.split(self.inner, dim=2)
            q, k, v = (t.reshape(n, length, self.heads, -1).permute(0, 2, 1, 3) for t in pieces)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


def attention(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    if len(shape) != 3:
        return mlp(shape, a, b, c)
    d, heads, head_dim = shape[-1], (1, 2, 3, 4)[a % 4], (2, 4)[b % 2]
    if c % 2:
        body: nn.Module = PackedAttention(d, heads, head_dim, b, fused=c % 4 == 1)
    else:
        body = Attention(d, heads, divisor(c, heads), head_dim, core=b // 2, bias=c % 4 == 0)
    return Fn(lambda x, norm, body: x + body(norm(x)), norm=features_norm(shape, b, c, 0), body=body)


def linear(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    if b % 4 == 3:
        return Conv1D(shape[-1], width(a))
    return nn.Linear(shape[-1], width(a), bias=b % 4 > 0)


def features_norm(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    d = shape[-1]
    if a % 4 == 3 and len(shape) == 2:
        return nn.BatchNorm1d(d)
    return (nn.LayerNorm(d), RMSNorm(d), nn.RMSNorm(d), nn.LayerNorm(d, elementwise_affine=False))[a % 4]


def features_activation(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    return ACTIVATIONS[a % len(ACTIVATIONS)]()


def mlp(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """Two linear layers with a residual, or gated: by two layers, or by the halves of one."""
    d, hidden = shape[-1], width(a)
    act, down = ACTIVATIONS[c % len(ACTIVATIONS)](), nn.Linear(hidden, d)
    if b % 3 == 0:
        return Fn(lambda x, up, act, down: x + down(act(up(x))), up=nn.Linear(d, hidden), act=act, down=down)
    if b % 3 == 1:
        ends = {"gate": nn.Linear(d, hidden), "up": nn.Linear(d, hidden, bias=False)}
        return Fn(lambda x, gate, up, down: x + down(F.silu(gate(x)) * up(x)), **ends, down=down)
    halves = lambda x, up, down: down((y := up(x).chunk(2, -1))[0] * F.gelu(y[1]))  # noqa: E731
    return Fn(halves, up=nn.Linear(d, 2 * hidden), down=down)


def shared(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """One weight used twice: a layer applied again, or an autoencoder whose decoder is the encoder turned."""
    d = shape[-1]
    if a % 2:
        return Fn(lambda x, layer: layer(torch.tanh(layer(x))), layer=nn.Linear(d, d))
    layer = nn.Linear(d, width(b))
    return Fn(lambda x, layer: F.linear(F.relu(layer(x)), layer.weight.t()), layer=layer)


def learned(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """A learned position for each token, or a learned token before the others."""
    d = shape[-1]
    if len(shape) == 2:
        return Fn(lambda x, gain: x * gain[0], gain=parameter(d))
    if a % 2:
        return Fn(lambda x, position: x + position[0], position=parameter(1, shape[1], d))
    before = lambda x, token: torch.cat([token[0].expand(x.shape[0], -1, -1), x], 1)  # noqa: E731
    return Fn(before, token=parameter(1, 1, d))


def features_concat(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    d = shape[-1]
    if b % 2 == 0 or d == 1:
        return Fn(lambda x, side: torch.cat([x, F.relu(side(x))], -1), side=nn.Linear(d, width(a)))
    at = 1 + a % (d - 1) if d > 1 else 1
    return Fn(lambda x: torch.cat([x[..., at:], x[..., :at].sigmoid()], dim=-1))


def mixer(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """Tokens mixed by a linear layer; for plain features, all products of two of a few."""
    if len(shape) == 3:
        ends = {"up": nn.Linear(shape[1], width(a)), "down": nn.Linear(width(a), shape[1])}
        return Fn(lambda x, up, down: x + down(F.gelu(up(x.transpose(1, 2)))).transpose(1, 2), **ends)
    few = nn.Linear(shape[-1], (2, 3)[a % 2])
    return Fn(lambda x, few: ((y := few(x))[:, :, None] * y[:, None, :]).flatten(1), few=few)


def averaged(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    if len(shape) == 2:
        return nn.Dropout(0.5)
    return (Fn(lambda x: x.mean(1)), Fn(lambda x: x[:, 0]), Fn(lambda x: x.flatten(1)), nn.Dropout())[a % 4]


def recurrent(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """LSTM, GRU or RNN over tokens, read at each step, the last one, or in its last states; or two steps of a cell."""
    d, hidden = shape[-1], width(a)
    last = lambda state: state[0] if isinstance(state, tuple) else state  # noqa: E731
    if len(shape) == 2:
        cell = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)[b % 3](d, hidden, bias=c % 2 == 0)
        return Fn(lambda x, cell: last(cell(x.relu(), cell(x))), cell=cell)
    kinds = (nn.LSTM, nn.GRU, nn.RNN)
    form = {"num_layers": 1 + c % 2, "bidirectional": c % 4 > 1, "bias": b % 2 == 0, "batch_first": True}
    rnn = kinds[b % 3](d, hidden, **form)
    reads = (lambda y, _: y, lambda y, _: y[:, -1], lambda _, state: torch.cat([*last(state)], -1))
    return Fn(lambda x, rnn: reads[c // 4](*rnn(x)), rnn=rnn)


def mixture(shape: Shape, a: int, b: int, c: int) -> nn.Module:
    """A router sends each token to some of its experts, whose matrices are looked up; what they say is added."""
    d, experts, chosen, hidden = shape[-1], 2 + b % 4, 1 + c % 2, width(a)

    def mix(x: Tensor, router: nn.Module, up: nn.Module, down: nn.Module) -> Tensor:
        chances, names = router(x).softmax(-1).topk(chosen, -1)
        y = up[0][names] @ x[..., None, :, None]  # (..., k, hidden, 1)
        y = (down[0][names] @ y.relu()).squeeze(-1)
        return x + (y * (chances / chances.sum(-1, keepdim=True))[..., None]).sum(-2)

    return Fn(mix, router=nn.Linear(d, experts), up=parameter(experts, hidden, d), down=parameter(experts, d, hidden))


FEATURES: dict[str, Block] = {
    "linear": linear,
    "activation": features_activation,
    "norm": features_norm,
    "mlp": mlp,
    "attention": attention,
    "shared": shared,
    "learned": learned,
    "concat": features_concat,
    "mixer": mixer,
    "recurrent": recurrent,
    "mixture": mixture,
    "averaged": averaged,
}


def recipes(*inputs: str, most: int = 5) -> st.SearchStrategy[Recipe]:
    """Recipes that start from one of `inputs`, all kinds unless given; at most `most` blocks of a kind."""
    return st.sampled_from(inputs or ("image", "features", "ids")).flatmap(lambda start: _recipes(start, most))


def _recipes(start: str, most: int) -> st.SearchStrategy[Recipe]:
    features = _steps(FEATURES, 0 if start == "image" else 1, max(1, most - 2))
    if start != "image":
        return features.map(lambda steps: Recipe(start, steps))
    bridges = st.just(()) | _steps(BRIDGE, 1, 1)
    parts = st.tuples(_steps(IMAGE, 1, most), bridges, features)
    return parts.map(lambda p: Recipe(start, p[0] + (p[1] + p[2] if p[1] else ())))


def _steps(table: dict[str, Block], least: int, most: int) -> st.SearchStrategy[tuple[Step, ...]]:
    choice = st.integers(0, 11)
    step = st.builds(Step, st.sampled_from(list(table)), choice, choice, choice)
    return st.lists(step, min_size=least, max_size=most).map(tuple)


def build(recipe: Recipe) -> tuple[nn.Module, Tensor]:
    """The network in eval mode, with nothing at zero or one by default, and an example input."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        blocks, inputs = _begin(recipe.input)
        x = nn.Sequential(*blocks)(inputs)
        table: dict[str, Block] = IMAGE if recipe.input == "image" else FEATURES
        for step in recipe.steps:
            if step.block in BRIDGE:
                table = FEATURES
            x = _add(blocks, {**table, **BRIDGE}[step.block](tuple(x.shape), *step[1:]), inputs)
        _add(blocks, nn.Conv2d(x.shape[1], 3, 1) if x.ndim == 4 else nn.Linear(x.shape[-1], 3), inputs)
        model = nn.Sequential(*blocks)
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape).mul_(0.4))
    return model.eval(), inputs


def _begin(kind: str) -> tuple[list[nn.Module], Tensor]:
    if kind == "image":
        return [nn.Conv2d(2, 6, 3, padding=1)], torch.randn(2, 2, 4, 4)
    if kind == "features":
        return [nn.Linear(5, 8)], torch.randn(4, 5)
    return [nn.Embedding(7, 6)], torch.randint(0, 7, (3, 5))


def _add(blocks: list[nn.Module], block: nn.Module, inputs: Tensor) -> Tensor:
    """Append a block; returns what now comes out."""
    blocks.append(block.eval())
    return nn.Sequential(*blocks)(inputs)


class Stubborn(nn.Module):
    """Computes the size of a head in a way that no integer of the class expresses once heads are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.out((torch.softmax(q @ k.mT, -1) @ v).transpose(1, 2).flatten(2))
