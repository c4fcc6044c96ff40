"""Why a model could not be captured, in the words of whoever called it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path as File

import torch
from torch import Tensor, nn

from prunus.errors import TraceError
from prunus.graph.nest import Path, input_tensors, with_tensors
from prunus.types import Inputs


def line_of(refusal: Exception) -> str:
    """The line of the user's code at which it was refused, in brackets; empty where there is none."""
    frames = traceback.extract_tb(refusal.__traceback__)
    line = next((f for f in reversed(frames) if not _foreign(f.filename) and f.line), None)
    return f" ({File(line.filename).name}:{line.lineno}: {line.line})" if line else ""


def _foreign(file: str) -> bool:
    """Is a file torch's own or ours, and so not where the user's model branches?"""
    return "/torch/" in file or file.startswith(str(File(__file__).parent))


def explained(error: Exception, model: nn.Module, inputs: Inputs) -> TraceError:
    """Tell a model that refuses its inputs from one whose path depends on values."""
    name, shapes = type(model).__name__, _shapes(input_tensors(inputs))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            own = with_tensors(inputs, {path: t.clone() for path, t in input_tensors(inputs).items()})
            model(*own.args, **own.kwargs)
    except Exception as own:  # noqa: BLE001
        named = inputs.kwargs and not inputs.args
        hint = " Here a dict is read as keyword arguments; for one dict argument pass ({...},)." if named else ""
        return TraceError(
            f"{name} refuses the example inputs ({shapes}): {type(own).__name__}: {_first_line(own)} "
            f"Pass inputs the model runs on: a tensor, a tuple of arguments, or a dict of keyword arguments.{hint}"
        )
    return TraceError(
        f"{name} runs on the example inputs ({shapes}) but cannot be captured, most likely because its path depends "
        f"on the values of tensors (an `if` on a tensor, `.item()`, `.tolist()`): {type(error).__name__}: "
        f"{_first_line(error)} Prune the part that does not branch, or rewrite the branch with torch.where."
    )


def _shapes(tensors: Mapping[Path, Tensor]) -> str:
    return ", ".join(f"{path[-1]}: {tuple(t.shape)} {t.dtype}" for path, t in tensors.items()) or "no tensors"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0].rstrip(".") + "."
