"""torchvision's models, also where its compiled operators do not fit the installed torch.

Its published wheels are built for CUDA. Beside a CPU build of torch their library cannot be loaded, and importing
torchvision then fails while it registers shapes for operators that do not exist. The classification models use none
of them, so declaring their schemas is enough. Write `from vision import models`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from pathlib import Path

import torch

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


load_compiled()
declared = declare_missing()
models = importlib.import_module("torchvision.models")
