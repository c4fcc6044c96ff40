"""What the machine's noise alone makes: a dense network against itself, call by call, and how often that alarms.

    python benchmarks/null.py --recordings 20

`measure(dense, against=copy, null=True)` times the copy twice a round; each recording keeps 300 rounds. A resplit takes
the two timings of every round, in either order (`swapped`), or all timings of both in any order (`shuffled`), as if one
of them were of a pruned network. One in twenty may alarm. `as recorded` are the recordings themselves, whose rounds do
not forget the ones before; there the 95 % is a promise of the machine's, not of the statistic's.
"""

from __future__ import annotations

import argparse
import copy
import platform
import sys

import torch
from torch import Tensor, nn

from prunus import measure
from prunus.result import aligned
from prunus.statistics import TimingChange, compare_timings
from prunus.tasks.digits import digits_cnn
from prunus.tasks.rows import example

RESPLITS = 200
SPLITS = ("swapped", "shuffled", "as recorded")
HEADINGS = ("network", "split", "comparisons", "alarms", "median ratio", "median width", "plain ratio, worst")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=20)
    parser.add_argument(
        "--tests", default="tests", help="the folder with vision.py, which makes torchvision importable"
    )
    given = parser.parse_args()
    sys.path.insert(0, given.tests)
    from vision import models

    networks = {
        "digits, batch 64": (digits_cnn(), example()),
        "ResNet-18, 64 px": (models.resnet18(), torch.randn(1, 3, 64, 64)),
    }
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, {given.recordings} recordings")
    rows = [HEADINGS]
    for name, (model, inputs) in networks.items():
        recordings = [recorded(model, inputs) for _ in range(given.recordings)]
        rows.extend((name, split, *summary(compared(recordings, split))) for split in SPLITS)
    print("\n".join(aligned(rows)))


def recorded(model: nn.Module, inputs: Tensor) -> Tensor:
    """The timings of one network under two labels, (2, rounds), in ms."""
    figures = measure(model, inputs, "latency_ms", against=copy.deepcopy(model), null=True, threads=1, repeats=300)
    return torch.tensor([m.samples for m in figures if m.subject != "model"], dtype=torch.float64)


def compared(recordings: list[Tensor], split: str) -> list[TimingChange]:
    if split == "as recorded":
        return [compare_timings(*one) for one in recordings]
    random = torch.Generator().manual_seed(0)
    resplit = {"swapped": swapped, "shuffled": shuffled}[split]
    return [compare_timings(*resplit(recordings[i % len(recordings)], random)) for i in range(RESPLITS)]


def swapped(pair: Tensor, random: torch.Generator) -> Tensor:
    heads = torch.rand(pair.shape[1], generator=random) < 0.5
    return torch.where(heads, pair, pair.flip(0))


def shuffled(pair: Tensor, random: torch.Generator) -> Tensor:
    return pair.flatten()[torch.randperm(pair.numel(), generator=random)].view_as(pair)


def summary(changes: list[TimingChange]) -> tuple[str, ...]:
    alarms = sum(change.differs for change in changes)
    ratio, width = (
        float(torch.tensor(values).median())
        for values in ([c.ratio for c in changes], [c.high / c.low - 1 for c in changes])
    )
    worst = max((c.of_medians for c in changes), key=lambda r: abs(r - 1))
    share = f"{alarms / len(changes) * 100:.1f} %"
    return str(len(changes)), share, f"{ratio:.4f}", f"{width * 100:.1f} %", f"{worst:.3f}"


if __name__ == "__main__":
    main()
