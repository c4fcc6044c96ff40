"""What holding zeros costs a training step: ResNet-18, 90 % of the weights held at zero, one core, interleaved.

Each way trains its own copy of one network; steps are taken in turn, in one process. Memory is that of what each way
keeps beside the model, in bytes a prunable weight.

taskset -c 0 python benchmarks/mask_step.py --repeats 30
"""

from __future__ import annotations

import argparse
import copy
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import prunus
from prunus.result import aligned
from prunus.statistics import median_quartiles

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from vision import models

DENSITY = 0.1
BATCH, SIZE = 16, 64


@dataclass(frozen=True, eq=False)
class Way:
    """One way to train: the model, its step, and what it keeps beside the model."""

    net: nn.Module
    step: Callable[[], object]
    kept: list[Tensor]


def plain(net: nn.Module, optimizer: torch.optim.Optimizer) -> Way:
    return Way(net, optimizer.step, [])


def held(net: nn.Module, optimizer: torch.optim.Optimizer) -> Way:
    masks = prunus.mask(net, _plan(net), optimizer)
    return Way(net, optimizer.step, list(masks.plan.keep.values()))


def multiplied(net: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype = torch.float32) -> Way:
    plan, weights = _plan(net), dict(net.named_parameters())
    masks = {name: keep.view(weights[name].shape).to(dtype) for name, keep in plan.keep.items()}

    def step() -> None:
        optimizer.step()
        with torch.no_grad():
            for name, kept in masks.items():
                weights[name].mul_(kept)

    return Way(net, step, list(masks.values()))


def multiplied_bool(net: nn.Module, optimizer: torch.optim.Optimizer) -> Way:
    return multiplied(net, optimizer, torch.bool)


def reparametrized(net: nn.Module, optimizer: torch.optim.Optimizer) -> Way:
    plan = _plan(net)
    for name, keep in plan.keep.items():
        module = net.get_submodule(name.rpartition(".")[0])
        torch_prune.custom_from_mask(module, "weight", keep.view(module.weight.shape))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    kept = [b for n, b in net.named_buffers() if n.endswith("_mask")]
    kept += [m.weight for m in net.modules() if hasattr(m, "weight_mask")]
    return Way(net, optimizer.step, kept)


WAYS = {
    "no pruning": plain,
    "prunus.mask": held,
    "w.mul_(float mask) after each step": multiplied,
    "w.mul_(bool mask) after each step": multiplied_bool,
    "torch.nn.utils.prune": reparametrized,
}


def _plan(net: nn.Module) -> prunus.Plan:
    groups = prunus.group(net, pattern=prunus.Element())
    scores = prunus.score(net, groups, prunus.criteria.magnitude)
    return prunus.allocate(groups, scores, prunus.Budget("units", at_most=DENSITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    repeats: int = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = models.resnet18(num_classes=10)
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(0, 10, (BATCH,))
    ways = {name: _made(way, net) for name, way in WAYS.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 2):  # two to warm up
        for name, way in ways.items():
            spent = _timed(way, images, labels)
            if turn > 1:
                times[name].append(spent)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, {SIZE} px, batch {BATCH}, {repeats} steps each")
    print("\n".join(aligned([_HEADINGS, *(_row(name, ways[name], times) for name in ways)])))


def _made(way: Callable[[nn.Module, torch.optim.Optimizer], Way], net: nn.Module) -> Way:
    own = copy.deepcopy(net)
    return way(own, torch.optim.SGD(own.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4))


def _timed(way: Way, images: Tensor, labels: Tensor) -> float:
    """Milliseconds of one step: forward, backward, optimizer, zeros."""
    start = time.perf_counter()
    way.net.zero_grad()
    nn.functional.cross_entropy(way.net(images), labels).backward()
    way.step()
    return (time.perf_counter() - start) * 1e3


_HEADINGS = ("way", "step, ms", "quartiles", "of no pruning", "bytes a weight", "zeros after")


def _row(name: str, way: Way, times: dict[str, list[float]]) -> tuple[str, ...]:
    median, low, high = median_quartiles(times[name])
    ratios = [mine / dense for mine, dense in zip(times[name], times["no pruning"], strict=True)]
    grid = sum(g.size for g in prunus.group(way.net, pattern=prunus.Element()))
    memory = sum(t.numel() * t.element_size() for t in way.kept) / grid
    return (
        name,
        f"{median:.1f}",
        f"{low:.1f} to {high:.1f}",
        f"{median_quartiles(ratios)[0]:.3f}x",
        f"{memory:.2f}",
        f"{_zeros(way.net) / grid:.4f}",
    )


def _zeros(net: nn.Module) -> int:
    """Zeros of the weights as they are used."""
    modules = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(int((m.weight == 0).sum()) for m in modules)


if __name__ == "__main__":
    main()
