"""How long it takes from a model to a plan: trace, group, score, allocate, on one core.

    python benchmarks/plan_time.py --tests tests --repeats 3

Models are torchvision's with random weights. The last column shows that the time of grouping
is linear in the members of the groups, as does the exponent of a fit; that of scoring is linear in the weights.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time

import torch

import prunus
from prunus.result import aligned

MODELS = (
    *("resnet18", "resnet50", "resnet152", "densenet121", "densenet201"),
    *("vit_b_16", "vit_l_16", "efficientnet_v2_l", "maxvit_t"),
)

HEADINGS = (
    *("model", "operations", "trace, s", "group, s", "score, s", "allocate, s", "in all, s"),
    *("members", "grouping, µs a member"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tests", default="tests", help="the folder with vision.py, which makes torchvision importable"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=MODELS)
    given = parser.parse_args()
    sys.path.insert(0, given.tests)
    from vision import models

    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, medians of {given.repeats}, 224 px, batch 2, half of all units")
    found = {name: measured(getattr(models, name)(), given.repeats) for name in given.models}
    print("\n".join(aligned([HEADINGS, *((name, *row(*each)) for name, each in found.items())])))
    logs = [(math.log(members), math.log(seconds[1])) for seconds, _, members in found.values()]
    if len(logs) > 1:
        slope = statistics.linear_regression(*zip(*logs, strict=True)).slope
        print(f"time of grouping ~ members to the power of {slope:.2f}")


def measured(model: torch.nn.Module, repeats: int) -> tuple[list[float], int, int]:
    """Median seconds of each step and of all together, and the numbers of operations and of members of all groups."""
    runs = [timed(model, torch.randn(2, 3, 224, 224)) for _ in range(repeats)]
    seconds = [statistics.median(run[step] for run in runs) for step in range(4)]
    return [*seconds, statistics.median(sum(run[:4]) for run in runs)], *runs[0][4:]


def row(seconds: list[float], operations: int, members: int) -> tuple[str, ...]:
    return str(operations), *(f"{s:.2f}" for s in seconds), str(members), f"{seconds[1] / members * 1e6:.0f}"


def timed(model: torch.nn.Module, inputs: torch.Tensor) -> tuple[float, float, float, float, int, int]:
    """Seconds of each step, and the numbers of operations and of members of all groups."""
    start = time.perf_counter()
    graph = prunus.trace(model, inputs)
    traced = time.perf_counter()
    groups = prunus.group(graph)
    grouped = time.perf_counter()
    scores = prunus.score(model, groups, prunus.criteria.magnitude)
    scored = time.perf_counter()
    prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.5), scope="layer")
    done = time.perf_counter()
    operations = sum(node.op.startswith("aten.") for node in graph.eval.program.nodes)
    members = sum(len(g.members) for g in groups)
    return traced - start, grouped - traced, scored - grouped, done - scored, operations, members


if __name__ == "__main__":
    main()
