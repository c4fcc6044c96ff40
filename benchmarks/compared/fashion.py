"""Fashion-MNIST from its four original files, as tensors on the scale that a network likes."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FILES = tuple(f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
MEAN, DEVIATION = 0.2860, 0.3530
HELD_OUT = 5000
"""The last images of the training files: what a choice may look at. The test files are looked at once a run."""


@dataclass(frozen=True)
class Images:
    """Images (n, 1, 28, 28), float32, and labels (n,)."""

    images: Tensor
    labels: Tensor

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))

    def steps(self, begin: int, end: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The shuffled batches of steps `begin` to `end` of a training with this seed."""
        each, order = len(self.labels) // size, torch.empty(0)
        for step in range(begin, end):
            if step == begin or step % each == 0:
                draw = torch.Generator().manual_seed(seed * 1000 + step // each)
                order = torch.randperm(len(self.labels), generator=draw)
            index = order[step % each * size :][:size]
            yield self.images[index], self.labels[index]


def load(folder: Path) -> tuple[Images, Images, Images]:
    """(training, held out, test)."""
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise SystemExit(
            f"{folder} lacks {', '.join(missing)}. Expected the four files of Fashion-MNIST as its authors publish "
            "them; say where they are with --data FOLDER."
        )
    train, labels, test, truth = (_read(folder / name) for name in FILES)
    train, test = ((x.float()[:, None] / 255 - MEAN) / DEVIATION for x in (train, test))
    labels, truth, cut = labels.long(), truth.long(), len(labels) - HELD_OUT
    return Images(train[:cut], labels[:cut]), Images(train[cut:], labels[cut:]), Images(test, truth)


def _read(path: Path) -> Tensor:
    """An idx file of bytes: its last byte of magic is the number of dimensions, each as four bytes."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.frombuffer(bytearray(raw[4 + 4 * len(shape) :]), dtype=torch.uint8).view(shape)
