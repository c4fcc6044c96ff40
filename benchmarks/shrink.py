"""Half of every group's units on networks of torchvision: what shrink and verify take, and whether the class was cut.

    python benchmarks/shrink.py --tests tests

Random weights, random scores, 64 px (96 for GoogLeNet), batch 2, one thread; inexact groups included.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

import prunus
from prunus.result import aligned

MODELS = (
    "resnet18 resnet50 resnext50_32x4d vgg11_bn densenet121 mobilenet_v2 mobilenet_v3_large efficientnet_b0 "
    "shufflenet_v2_x1_0 googlenet convnext_tiny vit_b_16 swin_t"
).split()
HEADINGS = (
    "model",
    "groups",
    "params",
    "MACs",
    "result",
    "shrink, s",
    "verify, s",
    "worst error",
    "control",
    "unwitnessed",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tests", default="tests", help="the folder with vision.py, which makes torchvision importable"
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    given = parser.parse_args()
    sys.path.insert(0, given.tests)
    from vision import models

    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread")
    rows = [HEADINGS]
    for name in given.models:
        torch.manual_seed(0)
        settings = {"googlenet": {"init_weights": False}, "vit_b_16": {"image_size": 64}}
        model = getattr(models, name)(**settings.get(name, {}))
        rows.append((name, *row(model, torch.randn(2, 3, *[96 if name == "googlenet" else 64] * 2))))
    print("\n".join(aligned(rows)))


def row(model: torch.nn.Module, inputs: torch.Tensor) -> tuple[str, ...]:
    groups = prunus.group(prunus.trace(model, inputs))
    scores = prunus.score(model, groups, prunus.criteria.random, reduce="mean")
    plan = prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.5), scope="layer")
    start = time.perf_counter()
    small = prunus.shrink(model, plan, verify=False)
    cut = time.perf_counter()
    proof = prunus.verify(model, small, plan)
    done = time.perf_counter()
    shares = [f"{after / before:.2f}x" for before, after in (plan.costs["params"], plan.costs["macs"])]
    worst = max(error for check, error in proof.errors.items() if check != "module")
    times = (f"{cut - start:.1f}", f"{done - cut:.1f}")
    return (
        *(str(len(groups)), *shares, type(small).__name__, *times),
        *(f"{worst:.0e}", f"{proof.control:.0e}", str(len(proof.unwitnessed))),
    )


if __name__ == "__main__":
    main()
