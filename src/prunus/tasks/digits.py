"""Handwritten digits: 1797 real images of 8 by 8 pixels from scikit-learn, and a residual network that reads them.

The task of `prunus run digits`: it trains in seconds on a laptop, its convolutions dominate its run time, and its test
split is large enough (over 900 images) for an interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from prunus.errors import RecoverError
from prunus.measure.untouched import untouched
from prunus.recover import MakeOptimizer, finetune
from prunus.types import Evaluate, Progress

M = TypeVar("M", bound=nn.Module)

WIDTH = 64
EPOCHS = 40
LR = 3e-3
"""Defaults of the dense network and its training."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images (n, 1, 8, 8), float32 in [0, 1], and their labels (n,), int64 in 0 to 9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Digits:
    """Three disjoint, stratified splits: weights are fitted on the first, chosen on the second, judged on the third."""

    train: Split
    validation: Split
    test: Split


@functools.cache
def load() -> Digits:
    """Load the images and split them, the same way on every machine.

    Of each class at least half are test images and 20 are for validation.

    Raises RecoverError when scikit-learn is not installed.

    Source: E. Alpaydin & C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    doi:10.24432/C50P49; the 1797 images of its test part, of 13 writers. Our splits share writers.
    """
    images, labels = _read()
    test, validation, train = _split(labels)
    return Digits(*(Split(images[index], labels[index]) for index in (train, validation, test)))


def _read() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise RecoverError(
            "The digits come with scikit-learn, which is missing. Try: pip install 'prunus[demo]'"
        ) from error
    data: Any = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def _split(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of the test, validation and training images, each sorted."""
    generator = torch.Generator().manual_seed(0)
    parts: list[tuple[Tensor, ...]] = []
    for digit in range(10):
        index = (labels == digit).nonzero()[:, 0]
        index = index[torch.randperm(len(index), generator=generator)]
        half = len(index) // 2 + 1
        parts.append((index[:half], index[half : half + 20], index[half + 20 :]))
    test, validation, train = (torch.cat(part).sort().values for part in zip(*parts, strict=True))
    return test, validation, train


class Batches:
    """Batches (images, labels) of a split, in a new order each pass, the same on every run.

    The order and the augmentation of a pass depend on `seed` and the number of the pass alone; passes count up from 0,
    and `set_epoch` says which comes next (`prunus.recover.finetune` calls it).
    """

    def __init__(self, split: Split, *, size: int, seed: int, shuffle: bool, augment: bool) -> None:
        self.split = split
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.augment = augment
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be number `epoch`."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self._epoch)
        self._epoch += 1
        n = len(self.split)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        for index in order.split(self.size):
            images = self.split.images[index]
            yield (moved(images, generator) if self.augment else images), self.split.labels[index]


def batches(
    split: Split | None = None, *, size: int = 64, seed: int = 0, shuffle: bool = True, augment: bool = True
) -> Batches:
    """Return re-iterable batches ((n, 1, 8, 8), (n,)) of `split`, by default of the training split.

    Shuffled and augmented for training; for scoring and recalibration `shuffle=False, augment=False` gives the same
    batches on every pass.
    """
    return Batches(split or load().train, size=size, seed=seed, shuffle=shuffle, augment=augment)


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each image (n, 1, h, w) by up to 12 degrees, scale it by up to 10 %, shift it by up to one pixel of 8."""
    n = len(images)
    angle, scale, dx, dy = (2 * torch.rand(4, n, generator=generator) - 1) * torch.tensor(
        [[0.21], [0.1], [0.25], [0.25]]
    )
    cos, sin = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    theta = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    Source: He et al. 2016, arXiv:1512.03385, figure 2 and option B.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class DigitsCNN(nn.Module):
    """Images (n, 1, 8, 8) to logits (n, 10): a stem, two residual blocks, the second strided, and a linear head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = width * 3 // 2
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.block1 = Block(width, width, 1)
        self.block2 = Block(width, wide, 2)
        self.head = nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn(self.stem(x)))
        h = self.block2(self.block1(h))
        return self.head(h.mean((2, 3)))


def digits_cnn(*, width: int = WIDTH, seed: int = 0) -> DigitsCNN:
    """Make an untrained network; its initial weights depend on `width` and `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return DigitsCNN(width)


@functools.cache
def macs(width: int) -> int:
    """Count the multiply-accumulates of a network of `width` on one image; batch norms and additions do not count.

    >>> macs(64)
    7066560
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        DigitsCNN(width).eval()(torch.empty(1, 1, 8, 8))
    return counter.get_total_flops() // 2


def smaller(share: float, *, width: int = WIDTH, seed: int = 0) -> DigitsCNN:
    """Make the widest untrained network with at most `share` of the MACs of one of `width`: the baseline to beat.

    Raises RecoverError when even width 2 needs more.
    """
    budget = share * macs(width)
    for narrow in range(width, 1, -1):
        if macs(narrow) <= budget:
            return digits_cnn(width=narrow, seed=seed)
    raise RecoverError(f"smaller({share}): no network of width 2 to {width} has at most {share} of {macs(width)} MACs.")


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy of a batch ((n, 1, 8, 8), (n,))."""
    images, labels = batch
    return F.cross_entropy(model(images).float(), labels)


def correct(model: nn.Module) -> Tensor:
    """Return 1.0 for each test image read correctly and 0.0 for each other one, shape (n,)."""
    split = load().test
    return (_logits(model, split.images).argmax(1) == split.labels).float()


def correct_validation(model: nn.Module) -> Tensor:
    """Return the same for each validation image."""
    split = load().validation
    return (_logits(model, split.images).argmax(1) == split.labels).float()


def likelihood(model: nn.Module) -> Tensor:
    """Return the probability in [0, 1] that the model gives to the right label of each validation image, shape (n,).

    What checkpoints are chosen by: the share of correct answers is often the same, 1.0, for many of them.
    """
    split = load().validation
    return _logits(model, split.images).softmax(1).gather(1, split.labels[:, None])[:, 0]


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model in eval mode and without gradients; its mode is put back."""
    with untouched(model), torch.no_grad():
        logits = model(images)
    return logits.float()


def train(
    model: M,
    *,
    epochs: int = EPOCHS,
    lr: float = LR,
    optimizer: MakeOptimizer | None = None,
    evaluate: Evaluate | None = likelihood,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> M:
    """Train `model` in place on the training split, keep its best epoch by `evaluate`, and return it.

    In float32 and channels-last, so that a run repeats to the bit.
    """
    return finetune(
        model,
        batches(seed=seed),
        loss,
        epochs=epochs,
        lr=lr,
        optimizer=optimizer,
        evaluate=evaluate,
        bf16=False,
        channels_last=True,
        seed=seed,
        run_dir=run_dir,
        progress=progress,
    )
