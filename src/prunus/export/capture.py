"""Capture a model for export by torch.export, with the sizes that are to stay free."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from prunus.errors import ExportError
from prunus.export.flat import Flat
from prunus.export.quiet import quiet

FIXED = "Pass dynamic_batch=False for a file of exactly the example's sizes, or"
"""How the errors about a dynamic batch go on; the other way out follows."""


def capture(flat: Flat, tensors: Sequence[Tensor], free: Sequence[set[int]]) -> ExportedProgram:
    """Capture one call. `free`: for each tensor, the dimensions whose sizes should stay free, where that can be.

    Raises ExportError where the model cannot be captured, and says so where only the free sizes are in the way.
    """
    try:
        return _captured(flat, tensors, free)
    except Exception as error:  # the model's own code runs here and may raise anything
        name = type(flat.model).__name__
        if any(free) and _captures(flat, tensors):
            raise ExportError(
                f"{name} cannot be exported with a dynamic batch, only with the example's sizes: {brief(error)} "
                f"{FIXED} compute sizes from x.shape rather than from numbers of the class."
            ) from error
        raise ExportError(
            f"{name} runs on the example inputs but torch.export cannot capture it, most likely because its path "
            f"depends on the values of tensors (an `if` on a tensor, `.item()`): {brief(error)} Export the part that "
            "does not branch, or rewrite the branch with torch.where."
        ) from error


def _captured(flat: Flat, tensors: Sequence[Tensor], free: Sequence[set[int]]) -> ExportedProgram:
    sizes = tuple(dict.fromkeys(sorted(dims), Dim.AUTO) or None for dims in free)
    with torch.no_grad(), quiet():
        return torch.export.export(flat, tuple(tensors), dynamic_shapes=(sizes,), strict=False)


def _captures(flat: Flat, tensors: Sequence[Tensor]) -> bool:
    try:
        _captured(flat, tensors, [set() for _ in tensors])
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


def brief(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    line = (str(error).strip() or "no message").splitlines()[0].rstrip(".:")
    return f"{type(error).__name__}: {line}."
