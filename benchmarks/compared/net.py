"""A ResNet of eight layers for images of 28 pixels, and its training by steps, in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compared.fashion import Images

BATCH, RATE = 64, 0.1


class Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.skip: nn.Module = nn.Identity()
        if stride > 1:
            self.skip = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


class ResNet8(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stages = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


def made(seed: int, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return ResNet8(width).eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def loss(model: nn.Module, batch: Any) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def correct(model: nn.Module, images: Images) -> Tensor:
    """Which images are told right, (n,) booleans."""
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.cat([model(x).argmax(1) == y for x, y in images.batches(500)])


def train(
    model: nn.Module,
    images: Images,
    steps: int,
    *,
    seed: int,
    rate: float = RATE,
    begin: int = 0,
    end: int | None = None,
    ride: Callable[[nn.Module, torch.optim.Optimizer], Any] | None = None,
) -> nn.Module:
    """Steps `begin` to `end` of a training of `steps`: SGD with momentum, the rate falling along a line to zero.

    `ride` attaches what goes along: it gives a context manager.
    """
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    with ExitStack() as along:
        if ride is not None:
            along.enter_context(ride(model, optimizer))
        for step, batch in _numbered(images, begin, steps if end is None else end, seed):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss(model, batch)
            value.backward()
            optimizer.step()
    return model.eval()


def _numbered(images: Images, begin: int, end: int, seed: int) -> Iterator[tuple[int, Any]]:
    return zip(range(begin, end), images.steps(begin, end, BATCH, seed), strict=True)
