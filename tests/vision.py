"""torchvision's models, also where its compiled operators do not fit the installed torch.

Its published wheels are built for CUDA. Beside a CPU build of torch their library cannot be loaded, and importing
torchvision then fails while it registers shapes for operators that do not exist. Declaring their schemas is enough for
most models; the detectors call two of them, which are given kernels in Python. Write `from vision import models`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask) -> Tensor",
)


def load_compiled() -> None:
    """Let torchvision's own library define its operators, where it can be loaded at all."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed; `make test` installs it.", name="torchvision")
    for library in Path(spec.origin).parent.glob("_C.*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(library)


def declare_missing() -> torch.library.Library | None:
    """Declare the operators that are not defined; they live as long as the library that is returned."""
    missing = [schema for schema in SCHEMAS if not hasattr(torch.ops.torchvision, schema.split("(")[0])]
    if not missing:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in missing:
        library.define(schema)
    return library


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that no box of a higher score covers by more than the threshold, highest score first."""
    order = scores.argsort(descending=True, stable=True)
    ops = importlib.import_module("torchvision.ops")
    covers = ops.box_iou(boxes[order], boxes[order]) > iou_threshold
    alive = torch.ones(len(order), dtype=torch.bool)
    for place in range(len(order)):
        if alive[place]:
            alive[place + 1 :] &= ~covers[place, place + 1 :]
    return order[alive]


def roi_align(*args: object) -> Tensor:
    """torchvision's own version in Python, without the compilation that it asks for."""
    return sys.modules["torchvision.ops.roi_align"]._roi_align.__wrapped__(*args)


def give_kernels(library: torch.library.Library) -> None:
    """Kernels for what the detectors call; torchvision then no longer takes its operators for missing."""
    for kernel in (nms, roi_align):
        library.impl(kernel.__name__, kernel, "CPU")
    for name, module in list(sys.modules.items()):
        if name.startswith("torchvision.ops."):
            vars(module).update(_assert_has_ops=lambda: None, _has_ops=lambda: True)


load_compiled()
declared = declare_missing()
models = importlib.import_module("torchvision.models")
if declared is not None:
    give_kernels(declared)
