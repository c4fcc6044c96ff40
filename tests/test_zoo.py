"""Half of every group of well-known models goes: what is left is proven, couples as written here by hand, and learns.

Which indices each tensor kept is read off its values alone: before the cut every state entry is given a value that
says where it stands. What must then index alike is stated for each architecture from its own forward pass, without
asking prunus; a dimension that lost indices and stands in no statement fails too.
"""

from __future__ import annotations

import copy
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vision import models

from prunus.allocate import allocate
from prunus.apply.shrink import shrink
from prunus.apply.verify import verify
from prunus.graph.group import Groups, group
from prunus.graph.interpret import GraphModel
from prunus.graph.trace import trace
from prunus.plan import Plan
from prunus.types import Budget

# Values that say where they stand: the 23 bits of a float's fraction hold a bijection of the flat index.

BITS = 2**23
ODD = 5_184_001
BACK = pow(ODD, -1, BITS)


def shape_of_values(name: str, tensor: Tensor) -> tuple[float, float]:
    """(scale, middle) of a state entry: powers of two, so that nothing is rounded away."""
    if tensor.ndim >= 2:
        return 2.0 ** round(math.log2(3 * (tensor.numel() / len(tensor)) ** -0.5)), 0.0
    return 1.0, 0.0 if name.endswith(("bias", "running_mean")) else 1.0


def code(name: str, tensor: Tensor) -> Tensor:
    """As many different numbers as the tensor has elements, around its middle."""
    assert tensor.numel() <= BITS
    scale, middle = shape_of_values(name, tensor)
    mixed = (torch.arange(tensor.numel()) * ODD + zlib.crc32(name.encode())) % BITS
    return (((mixed / BITS - 0.5) * scale) + middle).view(tensor.shape)


def decode(name: str, values: Tensor, whole: Tensor) -> Tensor:
    """The flat indices at which these values stood."""
    scale, middle = shape_of_values(name, whole)
    mixed = (((values - middle) / scale + 0.5) * BITS).long()
    return (mixed - zlib.crc32(name.encode())) * BACK % BITS


def state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those outside the state dict too; tied ones under their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def write_codes(model: nn.Module) -> None:
    for name, tensor in state(model).items():
        if tensor.is_floating_point():
            tensor.copy_(code(name, tensor))


# What was kept, and what must index alike


@dataclass
class Flow:
    """The channels at one place of a network, each with a number of its own: in the whole model, and in the smaller."""

    whole: Tensor
    small: Tensor


def join(*flows: Flow) -> Flow:
    """Laid end to end, as `torch.cat` does."""
    return Flow(torch.cat([f.whole for f in flows]), torch.cat([f.small for f in flows]))


def spread(flow: Flow, positions: int) -> Flow:
    """Each channel at so many positions in a row, as `flatten` does."""
    return Flow(*((x[:, None] * positions + torch.arange(positions)).flatten() for x in (flow.whole, flow.small)))


def copies(flow: Flow, count: int) -> Flow:
    """The same channels several times over, end to end, as in packed q, k, v."""
    return join(*(Flow(flow.whole * count + i, flow.small * count + i) for i in range(count)))


def shuffled(flow: Flow) -> Flow:
    """Two halves of the channels taken in turns."""
    return Flow(*(x.view(2, -1).t().flatten() for x in (flow.whole, flow.small)))


def halves(flow: Flow) -> tuple[Flow, Flow]:
    return tuple(Flow(a, b) for a, b in zip(flow.whole.chunk(2), flow.small.chunk(2), strict=True))


def read_kept(name: str, whole: Tensor, small: Tensor) -> list[Tensor]:
    """The indices kept along each dimension: the smaller tensor is exactly those slices of the whole one."""
    if not whole.is_floating_point() or whole.ndim == 0:
        assert torch.equal(whole, small), name
        return [torch.arange(n) for n in whole.shape]
    kept: list[Tensor] = []
    for dim, size in enumerate(whole.shape):
        line = small[tuple(slice(None) if d == dim else 0 for d in range(whole.ndim))]
        flat = decode(name, line, whole)
        kept.append(flat // math.prod(whole.shape[dim + 1 :]) % size)
        assert bool((kept[-1].diff() > 0).all()), f"{name}: dimension {dim} is out of order"
    for dim, index in enumerate(kept):
        whole = whole.index_select(dim, index)
    assert torch.equal(whole, small), f"{name} holds values that are not a slice of the original's"
    return kept


class Kept:
    """What every state entry of a smaller model kept, and which of it no statement has named yet.

    A statement is a line of places: `conv>` are the rows of a layer (its bias with them), `>conv` its columns,
    `norm` all entries of a module along dimension 0, `a.b:2` dimension 2 of the entry `a.b`.
    """

    def __init__(self, whole: nn.Module, small: nn.Module) -> None:
        self.sizes = {name: t.shape for name, t in state(whole).items()}
        theirs = state(small)
        assert theirs.keys() == self.sizes.keys()
        self.kept = {name: read_kept(name, t, theirs[name]) for name, t in state(whole).items()}
        self.unnamed = {
            (name, dim)
            for name, dims in self.kept.items()
            for dim, index in enumerate(dims)
            if len(index) < self.sizes[name][dim]
        }
        self.numbered = 0

    def places(self, place: str) -> list[tuple[str, int]]:
        if place.startswith(">"):
            return [(f"{place[1:]}.weight", 1)]
        if ":" in place:
            name, _, dim = place.partition(":")
            return [(name, int(dim))]
        module = place.removesuffix(">")
        found = [n for n in self.sizes if n.rpartition(".")[0] == module and len(self.sizes[n]) > 0]
        assert found, f"nothing is called {module}"
        return [(name, 0) for name in found]

    def at(self, place: str) -> Tensor:
        """The indices kept at one place, which must have lost half or more of them."""
        name, dim = self.places(place)[0]
        assert 0 < len(self.kept[name][dim]) <= self.sizes[name][dim] // 2, f"{place} lost too little"
        return self.kept[name][dim]

    def flow(self, place: str) -> Flow:
        """The channels that begin at a place."""
        name, dim = self.places(place)[0]
        self.numbered += 1
        base = self.numbered * 1_000_000
        return Flow(base + torch.arange(self.sizes[name][dim]), base + self.at(place))

    def follow(self, flow: Flow, line: str) -> None:
        """Every place of the line indexes as the channels that arrive there."""
        for place in line.split():
            for name, dim in self.places(place):
                assert self.sizes[name][dim] == len(flow.whole), f"{name}[{dim}] is not as long as what arrives"
                assert torch.equal(flow.whole[self.kept[name][dim]], flow.small), f"{name}[{dim}] does not fit"
                self.unnamed.discard((name, dim))

    def alike(self, *lines: str) -> None:
        """All places of a line index as its first."""
        for line in lines:
            self.follow(self.flow(line.split()[0]), line)

    def product(self, place: str, inner: int) -> tuple[Tensor, Tensor]:
        """Indices that are every pair of some outer and some inner ones."""
        index = self.at(place)
        outer, within = (index // inner).unique(), (index % inner).unique()
        assert torch.equal(index, (outer[:, None] * inner + within).flatten()), f"{place} is no product"
        return outer, within


# The architectures, written from their forward passes

NARROW = {"num_classes": 10}


class OptionA(nn.Module):
    """A residual block whose shortcut has no weights: every second pixel, channels padded with zeros on both sides."""

    def __init__(self, wide: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: Callable[[Tensor], Tensor] = lambda x: x
        if wide != planes:
            self.shortcut = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2: three stages of three blocks for CIFAR."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (wide, planes) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            first = OptionA(wide, planes, 1 if stage == 1 else 2)
            setattr(self, f"layer{stage}", nn.Sequential(first, *(OptionA(planes, planes, 1) for _ in range(2))))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def vgg() -> nn.Module:
    model = models.vgg11_bn(**NARROW)
    model.classifier = nn.Sequential(nn.Linear(25088, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))
    return model


def googlenet() -> nn.Module:
    return models.googlenet(init_weights=False, **NARROW)


AUXILIARY = ("aux1.conv.conv", "aux1.fc1", "aux2.conv.conv", "aux2.fc1")


def plain_cnn() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU())
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(108, 20), nn.ReLU(), nn.Linear(20, 5)
    )


def of_plain_cnn(k: Kept) -> None:
    k.alike("0> 1 >4", "8> >10")
    k.follow(spread(k.flow("4>"), 9), ">8")
    k.alike("4>")


def of_resnet(k: Kept, *, convs: int, blocks: Sequence[int], grouped: bool = False) -> None:
    trunk = "conv1> bn1"
    for stage, count in enumerate(blocks, 1):
        first, *others = (f"layer{stage}.{block}" for block in range(count))
        trunk += f" >{first}.conv1"
        if stage > 1 or convs == 3:
            k.alike(f"{trunk} >{first}.downsample.0")
            trunk = f"{first}.downsample.0> {first}.downsample.1"
        trunk += f" {first}.conv{convs}> {first}.bn{convs}"
        trunk += "".join(f" >{p}.conv1 {p}.conv{convs}> {p}.bn{convs}" for p in others)
        for p in (first, *others):
            within_block(k, p, convs, grouped)
    k.alike(f"{trunk} >fc")


def within_block(k: Kept, p: str, convs: int, grouped: bool) -> None:
    if convs == 2:
        return k.alike(f"{p}.conv1> {p}.bn1 >{p}.conv2")
    k.alike(f"{p}.conv2> {p}.bn2 >{p}.conv3")
    if not grouped:
        return k.alike(f"{p}.conv1> {p}.bn1 >{p}.conv2")
    width = k.sizes[f"{p}.conv2.weight"][1]
    k.alike(f"{p}.conv1> {p}.bn1", f">{p}.conv2")
    into, inner = k.product(f"{p}.conv1>", width)
    out, _ = k.product(f"{p}.conv2>", width)
    assert torch.equal(into, out)
    assert torch.equal(inner, k.at(f">{p}.conv2"))
    return None


def of_resnet20(k: Kept) -> None:
    """Each stage's trunk holds the one before it in its middle half."""
    trunk = "conv1> bn1"
    for stage in (1, 2, 3):
        first, *others = (f"layer{stage}.{block}" for block in range(3))
        k.alike(*(f"{p}.conv1> {p}.bn1 >{p}.conv2" for p in (first, *others)))
        own = f"{first}.conv2> {first}.bn2" + "".join(f" >{p}.conv1 {p}.conv2> {p}.bn2" for p in others)
        if stage == 1:
            trunk = f"{trunk} >{first}.conv1 {own}"
            continue
        k.alike(f"{trunk} >{first}.conv1")
        narrow, wide, quarter = k.at(trunk.split()[0]), k.at(f"{first}.conv2>"), 2 ** (stage + 1)
        assert torch.equal(wide[(wide >= quarter) & (wide < 3 * quarter)] - quarter, narrow)
        trunk = own
    k.alike(f"{trunk} >fc")


def of_vgg(k: Kept) -> None:
    convs = (0, 4, 8, 11, 15, 18, 22, 25)
    for this, following in itertools.pairwise(convs):
        k.alike(f"features.{this}> features.{this + 1} >features.{following}")
    k.alike("features.25> features.26", "classifier.0> >classifier.3")
    k.follow(spread(k.flow("features.25>"), 49), ">classifier.0")


def of_densenet(k: Kept) -> None:
    k.alike("features.conv0> features.norm0")
    flow = k.flow("features.conv0>")
    for block, count in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, count + 1):
            p = f"features.denseblock{block}.denselayer{layer}"
            k.follow(flow, f"{p}.norm1 >{p}.conv1")
            k.alike(f"{p}.conv1> {p}.norm2 >{p}.conv2", f"{p}.conv2>")
            flow = join(flow, k.flow(f"{p}.conv2>"))
        if block < 4:
            p = f"features.transition{block}"
            k.follow(flow, f"{p}.norm >{p}.conv")
            k.alike(f"{p}.conv>")
            flow = k.flow(f"{p}.conv>")
    k.follow(flow, "features.norm5 >classifier")


def inverted(k: Kept, p: str, parts: str) -> None:
    """An inverted residual; `parts` are the places of expansion, depthwise convolution, squeeze and projection."""
    expand, depth, squeeze, project = parts.split()
    line = f"{p}.{depth}.0> {p}.{depth}.1 >{p}.{project}"
    line = line if expand == "-" else f"{p}.{expand}.0> {p}.{expand}.1 {line}"
    if squeeze != "-":
        line += f" >{p}.{squeeze}.fc1 {p}.{squeeze}.fc2>"
        k.alike(f"{p}.{squeeze}.fc1> >{p}.{squeeze}.fc2")
    k.alike(line)


def trunks(k: Kept, stages: Sequence[Sequence[tuple[str, str, str]]], last: str) -> None:
    """Blocks of one stage add up. A block is (its first reader, its projection, the norm after it)."""
    firsts = [stage[0][0] for stage in stages[1:]]
    for stage, reader in zip(stages, [*firsts, last], strict=True):
        produced = " ".join(f"{project}> {norm}" for _, project, norm in stage)
        k.alike(" ".join([produced, *(f">{first}" for first, _, _ in stage[1:]), f">{reader}"]))


def of_mobilenet_v2(k: Kept) -> None:
    k.alike("features.0.0> features.0.1 features.1.conv.0.0> features.1.conv.0.1 >features.1.conv.1")
    for i in range(2, 18):
        inverted(k, f"features.{i}.conv", "0 1 - 2")
    stages = ((2, 3), (4, 5, 6), (7, 8, 9, 10), (11, 12, 13), (14, 15, 16), (17,))
    blocks = [[(f"features.{i}.conv.0.0", f"features.{i}.conv.2", f"features.{i}.conv.3") for i in s] for s in stages]
    trunks(k, [[("", "features.1.conv.1", "features.1.conv.2")], *blocks], "features.18.0")
    k.alike("features.18.0> features.18.1 >classifier.1")


def of_mobilenet_v3(k: Kept) -> None:
    p = "features.1.block"
    k.alike(f"features.0.0> features.0.1 {p}.0.0> {p}.0.1 >{p}.1.fc1 {p}.1.fc2> >{p}.2.0", f"{p}.1.fc1> >{p}.1.fc2")
    for i in range(2, 12):
        inverted(k, f"features.{i}.block", "0 1 - 2.0" if i < 4 else "0 1 2 3.0")

    def block(i: int) -> tuple[str, str, str]:
        end = 2 if i < 4 else 3
        return f"features.{i}.block.0.0", f"features.{i}.block.{end}.0", f"features.{i}.block.{end}.1"

    stages = ((1,), (2, 3), (4, 5, 6), (7, 8), (9, 10, 11))
    trunks(k, [[block(i) for i in stage] for stage in stages], "features.12.0")
    k.alike("features.12.0> features.12.1 >classifier.0", "classifier.0> >classifier.3")


def of_efficientnet(k: Kept) -> None:
    p = "features.1.0.block"
    k.alike(f"features.0.0> features.0.1 {p}.0.0> {p}.0.1 >{p}.1.fc1 {p}.1.fc2> >{p}.2.0", f"{p}.1.fc1> >{p}.1.fc2")
    stages = [[(f"{p}.0.0", f"{p}.2.0", f"{p}.2.1")]]
    for stage, count in ((2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 1)):
        names = [f"features.{stage}.{block}.block" for block in range(count)]
        for p in names:
            inverted(k, p, "0 1 2 3.0")
        stages.append([(f"{p}.0.0", f"{p}.3.0", f"{p}.3.1") for p in names])
    trunks(k, stages, "features.8.0")
    k.alike("features.8.0> features.8.1 >classifier.1")


def even_shufflenet() -> nn.Module:
    return models.ShuffleNetV2([2, 1, 2], [8, 32, 64, 64, 32], **NARROW)


def of_shufflenet(k: Kept) -> None:
    """The real widths are twice an odd number, so that halves of shuffled halves have no common factors: they stay."""
    k.alike("conv1.0> conv1.1 stage2.0.branch1.0> stage2.0.branch1.1 >stage2.0.branch1.2 >stage2.0.branch2.0")
    for p in (f"stage{stage}.{block}.branch2" for stage, count in ((2, 4), (3, 8), (4, 4)) for block in range(count)):
        k.alike(f"{p}.0> {p}.1 {p}.3> {p}.4 >{p}.5")
    k.alike("conv5.0> conv5.1 >fc")


def of_even_shufflenet(k: Kept) -> None:
    k.alike("conv1.0> conv1.1")
    flow = k.flow("conv1.0>")
    for stage, count in ((2, 2), (3, 1), (4, 2)):
        for block in range(count):
            left, right = (f"stage{stage}.{block}.branch{b}" for b in (1, 2))
            passed, taken = (flow, flow) if block == 0 else halves(flow)
            k.follow(taken, f">{right}.0")
            k.alike(f"{right}.0> {right}.1 {right}.3> {right}.4 >{right}.5", f"{right}.5> {right}.6")
            if block == 0:
                k.follow(passed, f"{left}.0> {left}.1 >{left}.2")
                k.alike(f"{left}.2> {left}.3")
                passed = k.flow(f"{left}.2>")
            flow = shuffled(join(passed, k.flow(f"{right}.5>")))
    k.follow(flow, ">conv5.0")
    k.alike("conv5.0> conv5.1 >fc")


def of_googlenet(k: Kept) -> None:
    k.alike("conv1.conv> conv1.bn >conv2.conv", "conv2.conv> conv2.bn >conv3.conv", "conv3.conv> conv3.bn")
    flow = k.flow("conv3.conv>")
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        p = f"inception{name}"
        k.follow(flow, f">{p}.branch1.conv >{p}.branch2.0.conv >{p}.branch3.0.conv >{p}.branch4.1.conv")
        k.alike(*(f"{p}.branch{b}.0.conv> {p}.branch{b}.0.bn >{p}.branch{b}.1.conv" for b in (2, 3)))
        ends = [f"{p}.{end}" for end in ("branch1", "branch2.1", "branch3.1", "branch4.1")]
        k.alike(*(f"{end}.conv> {end}.bn" for end in ends))
        flow = join(*(k.flow(f"{end}.conv>") for end in ends))
        if name in ("4a", "4d"):
            aux = "aux1" if name == "4a" else "aux2"
            k.follow(flow, f">{aux}.conv.conv")
            k.alike(f"{aux}.conv.conv> {aux}.conv.bn", f"{aux}.fc1> >{aux}.fc2")
            k.follow(spread(k.flow(f"{aux}.conv.conv>"), 16), f">{aux}.fc1")
    k.follow(flow, ">fc")


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig

    return models.ConvNeXt([CNBlockConfig(16, 24, 2), CNBlockConfig(24, None, 1)], stochastic_depth_prob=0.2, **NARROW)


def of_convnext(k: Kept, *, trunk: bool) -> None:
    blocks = ("features.1.0", "features.1.1", "features.3.0")
    k.alike(*(f"{p}.block.3> >{p}.block.5" for p in blocks))
    if trunk:
        first, second, third = (f"{p}.block.0> {p}.block.2 >{p}.block.3 {p}.block.5> {p}.layer_scale:0" for p in blocks)
        k.alike(f"features.0.0> features.0.1 {first} {second} features.2.0 >features.2.1")
        k.alike(f"features.2.1> {third} classifier.0 >classifier.2")


def swin() -> nn.Module:
    shape = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": [4, 4]}
    return models.SwinTransformer(**shape, **NARROW)


def of_swin(k: Kept, *, all_kinds: bool) -> None:
    blocks = ("features.1.0", "features.1.1", "features.3.0")
    k.alike(*(f"{p}.mlp.0> >{p}.mlp.3" for p in blocks))
    if not all_kinds:
        return
    first, second, third = (f"{p}.norm1 >{p}.attn.qkv {p}.attn.proj> {p}.norm2 >{p}.mlp.0 {p}.mlp.3>" for p in blocks)
    k.alike(f"features.0.0> features.0.2 {first} {second}", f"features.2.reduction> {third} norm >head")
    k.follow(copies(k.flow("features.0.0>"), 4), "features.2.norm >features.2.reduction")
    for p in blocks:
        heads, _ = k.product(f">{p}.attn.proj", 8)
        k.alike(f">{p}.attn.proj", f"{p}.attn.relative_position_bias_table:1")
        k.follow(copies(k.flow(f">{p}.attn.proj"), 3), f"{p}.attn.qkv>")
        assert torch.equal(heads, k.at(f"{p}.attn.relative_position_bias_table:1"))


def vit() -> nn.Module:
    return models.VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, **NARROW)


def of_vit(k: Kept, *, all_kinds: bool) -> None:
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(2)]
    k.alike(*(f"{p}.mlp.0> >{p}.mlp.3" for p in blocks))
    if not all_kinds:
        return
    trunk = "conv_proj> class_token:2 encoder.pos_embedding:2 encoder.ln >heads.head"
    for p in blocks:
        trunk += f" {p}.ln_1 {p}.self_attention.in_proj_weight:1 {p}.self_attention.out_proj>"
        trunk += f" {p}.ln_2 >{p}.mlp.0 {p}.mlp.3>"
        values = f">{p}.self_attention.out_proj"
        k.product(values, 8)
        k.alike(values)
        packed = f"{p}.self_attention.in_proj_weight:0 {p}.self_attention.in_proj_bias:0"
        k.follow(copies(k.flow(values), 3), packed)
    k.alike(trunk)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=50, max_position_embeddings=40))


def of_bert(k: Kept, *, trunk: bool) -> None:
    embeddings = " ".join(f"bert.embeddings.{e}_embeddings.weight:1" for e in ("word", "position", "token_type"))
    line = f"{embeddings} bert.embeddings.LayerNorm >bert.pooler.dense"
    for layer in range(2):
        p = f"bert.encoder.layer.{layer}"
        self = f"{p}.attention.self"
        line += f" >{self}.query >{self}.key >{self}.value {p}.attention.output.dense> {p}.attention.output.LayerNorm"
        line += f" >{p}.intermediate.dense {p}.output.dense> {p}.output.LayerNorm"
        k.alike(f"{p}.intermediate.dense> >{p}.output.dense")
        k.alike(f"{self}.query> {self}.key>", f"{self}.value> >{p}.attention.output.dense")
        heads, inside = k.product(f"{self}.query>", 8)
        others, inner = k.product(f"{self}.value>", 8)
        assert torch.equal(heads, others)
        assert len(inside) == len(inner) <= 4
    k.alike("bert.pooler.dense> >classifier")
    if trunk:
        k.alike(line)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 8}
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 50}
    return LlamaForCausalLM(LlamaConfig(**heads, **sizes, tie_word_embeddings=True))


def of_llama(k: Kept, *, trunk: bool) -> None:
    """Four query heads share a key-value head; rotary positions turn dimension i together with i + 4."""
    line = "model.embed_tokens.weight:1 model.norm"
    turns = k.at("model.rotary_emb.inv_freq:0")
    k.alike("model.rotary_emb.inv_freq:0")
    for layer in range(2):
        p = f"model.layers.{layer}"
        q, keys, v, o = (f"{p}.self_attn.{which}_proj" for which in "qkvo")
        line += f" {p}.input_layernorm >{q} >{keys} >{v} {o}> {p}.post_attention_layernorm"
        line += f" >{p}.mlp.gate_proj >{p}.mlp.up_proj {p}.mlp.down_proj>"
        k.alike(f"{p}.mlp.gate_proj> {p}.mlp.up_proj> >{p}.mlp.down_proj", f"{q}>", f"{keys}>", f"{v}>", f">{o}")
        rows = [k.product(place, 8) for place in (f"{q}>", f"{keys}>", f"{v}>", f">{o}")]
        (q_heads, q_dims), (k_heads, k_dims), (v_heads, v_dims), (o_heads, o_dims) = rows
        assert torch.equal(q_heads, o_heads)
        assert torch.equal(k_heads, v_heads)
        assert torch.equal(q_heads, (k_heads[:, None] * 4 + (q_heads % 4).unique()).flatten())
        assert torch.equal(q_dims, k_dims)
        assert torch.equal(v_dims, o_dims)
        assert torch.equal(q_dims, torch.cat([turns, turns + 4]))
    if trunk:
        k.alike(line)


# The zoo


@dataclass(frozen=True)
class Animal:
    """How to make a model, what must couple in it, and how to call and prune it.

    `size` is that of its images, none for text. `own` says whether the smaller model is of the user's class; `blind`
    are groups that do not reach the output in eval mode.
    """

    make: Callable[[], nn.Module]
    couples: Callable[[Kept], None]
    size: int | None = 32
    own: bool = True
    only: dict[str, Any] = field(default_factory=dict[str, Any])
    blind: tuple[str, ...] = ()

    def call(self, batch: int) -> dict[str, Tensor] | Tensor:
        torch.manual_seed(batch)
        if self.size is not None:
            return torch.randn(batch, 3, self.size, self.size)
        return {"input_ids": torch.randint(0, 50, (batch, 9)), "attention_mask": torch.ones(batch, 9).long()}


CHANNELS = {"kind": "channel"}
ZOO = {
    "cnn": Animal(plain_cnn, of_plain_cnn, 16),
    "resnet18": Animal(models.resnet18, partial(of_resnet, convs=2, blocks=(2, 2, 2, 2))),
    "resnet20": Animal(ResNet20, of_resnet20, own=False),
    "resnet50": Animal(models.resnet50, partial(of_resnet, convs=3, blocks=(3, 4, 6, 3))),
    "resnext50": Animal(models.resnext50_32x4d, partial(of_resnet, convs=3, blocks=(3, 4, 6, 3), grouped=True)),
    "vgg": Animal(vgg, of_vgg),
    "densenet": Animal(models.densenet121, of_densenet),
    "mobilenet_v2": Animal(models.mobilenet_v2, of_mobilenet_v2),
    "mobilenet_v3": Animal(models.mobilenet_v3_small, of_mobilenet_v3),
    "efficientnet": Animal(models.efficientnet_b0, of_efficientnet),
    "shufflenet": Animal(models.shufflenet_v2_x1_0, of_shufflenet),
    "shufflenet_even": Animal(even_shufflenet, of_even_shufflenet),
    "googlenet": Animal(googlenet, of_googlenet, 64, blind=AUXILIARY),
    "convnext": Animal(convnext, partial(of_convnext, trunk=True)),
    "convnext_exact": Animal(convnext, partial(of_convnext, trunk=False), only={"exact": True}),
    "swin": Animal(swin, partial(of_swin, all_kinds=True), own=False),
    "swin_channels": Animal(swin, partial(of_swin, all_kinds=False), only=CHANNELS),
    "vit": Animal(vit, partial(of_vit, all_kinds=True), own=False),
    "vit_channels": Animal(vit, partial(of_vit, all_kinds=False), only=CHANNELS),
    "bert": Animal(bert, partial(of_bert, trunk=True), None),
    "bert_exact": Animal(bert, partial(of_bert, trunk=False), None, only={"exact": True}),
    "llama": Animal(llama, partial(of_llama, trunk=True), None),
    "llama_exact": Animal(llama, partial(of_llama, trunk=False), None, only={"exact": True}),
}


@dataclass
class Cut:
    """A model in training mode with its first parameter frozen, and its half."""

    animal: Animal
    whole: nn.Module
    small: nn.Module
    plan: Plan

    @cached_property
    def kept(self) -> Kept:
        return Kept(self.whole, self.small)


@pytest.fixture(scope="module", params=list(ZOO))
def cut(request: pytest.FixtureRequest) -> Cut:
    animal: Animal = ZOO[request.param]
    whole = animal.make().train()
    write_codes(whole)
    next(whole.parameters()).requires_grad_(False)
    groups = group(trace(whole, animal.call(2))).only(**animal.only)
    plan = allocate(groups, random_scores(groups), Budget("units", at_most=0.5), scope="layer")
    return Cut(animal, whole, shrink(whole, plan, verify=False), plan)


def random_scores(groups: Groups) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {g.name: torch.rand(g.size, generator=draw) for g in groups}


def results(model: nn.Module, call: dict[str, Tensor] | Tensor) -> list[Tensor]:
    """Every floating tensor that a model returns, caches left out."""

    def leaves(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value
        elif isinstance(value, Mapping | tuple):
            for item in value.values() if isinstance(value, Mapping) else value:
                yield from leaves(item)

    return list(leaves(model(**call) if isinstance(call, dict) else model(call)))


def tied(model: nn.Module) -> list[list[str]]:
    """Names that stand for one and the same parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(sorted(same) for same in names.values() if len(same) > 1)


def test_it_is_proven(cut: Cut) -> None:
    proof = verify(cut.whole, cut.small, cut.plan)
    assert all(error <= proof.accepted[check] for check, error in proof.errors.items())
    assert {"user", "redrawn", "train"} <= proof.errors.keys()
    assert ("zeroed" in proof.errors) == all(g.exact for g in cut.plan.groups)
    assert ("module" in proof.errors) == cut.animal.own
    assert proof.unwitnessed == cut.animal.blind


def test_it_keeps_slices_that_couple_as_the_architecture_says(cut: Cut) -> None:
    cut.animal.couples(cut.kept)
    assert not cut.kept.unnamed


@torch.no_grad()
def test_it_computes_what_the_zeroed_original_does_at_another_batch_size(cut: Cut) -> None:
    small = copy.deepcopy(cut.small).double().eval()
    call = cut.animal.call(3)
    call = call.double() if isinstance(call, Tensor) else call
    found = results(small, call)
    if not all(g.exact for g in cut.plan.groups):
        assert all(bool(r.isfinite().all()) and len(r) == 3 for r in found)
        return
    zeroed = copy.deepcopy(cut.whole).double().eval()
    for name, tensor in state(zeroed).items():
        for dim, index in enumerate(cut.kept.kept[name]):
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool).index_fill(0, index, False)
            if tensor.is_floating_point() and bool(gone.any()):
                tensor.index_fill_(dim, gone.nonzero().flatten(), 0)
    for a, b in zip(results(zeroed, call), found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


def test_it_learns(cut: Cut) -> None:
    model = copy.deepcopy(cut.small).train()
    torch.stack([r.square().mean() for r in results(model, cut.animal.call(4))]).sum().backward()
    frozen, *others = model.parameters()
    assert frozen.grad is None
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in others)
    assert any(bool((p.grad != 0).any()) for p in others[:3] if p.grad is not None)


def test_it_keeps_class_names_ties_and_flags(cut: Cut) -> None:
    whole, small = cut.whole, cut.small
    assert type(small) is (type(whole) if cut.animal.own else GraphModel)
    assert sorted(small.state_dict()) == sorted(whole.state_dict())
    assert tied(small) == tied(whole)
    assert all(m.training for m in small.modules())
    for (name, a), b in zip(state(whole).items(), map(state(small).get, state(whole)), strict=True):
        assert b is not None, name
        assert (a.dtype, a.requires_grad, type(a)) == (b.dtype, b.requires_grad, type(b)), name


def test_the_original_is_left_as_it_was(cut: Cut) -> None:
    assert all(m.training for m in cut.whole.modules())
    assert all(torch.equal(t, code(name, t)) for name, t in state(cut.whole).items() if t.is_floating_point())
