"""Every model of torchvision that is not quantized, at full size on images as small as it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from vision import models

from covered.entry import Call, Entry, images

FAMILY = "torchvision"
SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}
"""Height and width of the images where 64 is not enough, or no multiple of the patches."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    **{
        f"vit_{size}": {"image_size": SIZES.get(f"vit_{size}", 64)} for size in ("b_16", "b_32", "l_16", "l_32", "h_14")
    },
}
CLIPS = {"s3d": (3, 16, 224, 224), "mvit_v1_b": (3, 16, 224, 224), "mvit_v2_s": (3, 16, 224, 224)}
FEW = {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 10}
"""Boxes of the two-stage detectors: their number changes no weight."""


def make(name: str, **settings: Any) -> nn.Module:
    return models.get_model(name, weights=None, **settings)


def entries() -> Iterator[Entry]:
    for name in models.list_models(module=models):
        size = SIZES.get(name, 64)
        yield Entry(name, FAMILY, partial(make, name, **SETTINGS.get(name, {})), images(3, size, size))
    for name in models.list_models(module=models.segmentation):
        yield Entry(name, FAMILY, partial(make, name, weights_backbone=None, num_classes=5), images(3, 64, 64))
    for name in models.list_models(module=models.video):
        yield Entry(name, FAMILY, partial(make, name), images(*CLIPS.get(name, (3, 8, 64, 64))))
    for name in models.list_models(module=models.optical_flow):
        yield Entry(name, FAMILY, partial(make, name), flow)
    for name in models.list_models(module=models.detection):
        yield Entry(name, FAMILY, partial(detector, name), pictures(name), calls=3)


def flow(batch: int) -> Call:
    """Two images and the number of updates, of which two are enough to see that the second reads the first."""
    return torch.rand(batch, 3, 128, 128), torch.rand(batch, 3, 128, 128), 2


def detector(name: str) -> nn.Module:
    settings: dict[str, Any] = {"weights_backbone": None, "num_classes": 3}
    if not name.startswith("ssd"):
        settings |= {"min_size": 64, "max_size": 96}
    return make(name, **settings, **(FEW if "rcnn" in name else {"detections_per_img": 10}))


def pictures(name: str) -> Callable[[int], Call]:
    side = 128 if name.startswith("ssd") else 64
    return lambda batch: ([torch.rand(3, side, side) for _ in range(batch)],)
