"""How far two models are apart: the relative error between their results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunus.graph.graph import Graph
from prunus.graph.interpret import GraphModel
from prunus.graph.nest import input_tensors, take_outputs, with_tensors
from prunus.graph.private import private_copy
from prunus.types import Inputs

_NATIVE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError, KeyError)


def error_between(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference over the largest value, worst over the results; infinite where shapes differ."""
    if len(expected) != len(found):
        return float("inf")
    return max((_error(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)


def _error(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0 or not a.dtype.is_floating_point:
        return 0.0 if torch.equal(a, b) else float("inf")
    a, b = a.double(), b.double()
    gap = torch.where(a == b, 0.0, a - b).abs().max()  # a mask of infinities agrees with itself
    error = float(gap / a.nan_to_num(posinf=0.0, neginf=0.0).abs().max().clamp(min=1e-30))
    return error if error == error else float("inf")


def native_bound(model: nn.Module) -> float:
    """The relative error to allow at a model's own dtype."""
    return max((_NATIVE[p.dtype] for p in model.parameters() if p.dtype in _NATIVE), default=_NATIVE[torch.float32])


def call(model: nn.Module, example: Inputs, graph: Graph) -> list[Tensor]:
    """The traced results of a module in eval mode; its mode, buffers and inputs stay as they are."""
    return results(model, example, list(graph.eval.program.spec.get("dict", {})) or None)


def results(model: nn.Module, example: Inputs, names: Sequence[str] | None) -> list[Tensor]:
    """The results of a module in eval mode, or those of these names, called on copies."""
    mine = private_copy(model).eval()
    own = with_tensors(example, {path: t.clone() for path, t in input_tensors(example).items()})
    with torch.no_grad():
        return take_outputs(mine(*own.args, **own.kwargs), names)[0]


def agrees(copy: nn.Module, made: GraphModel, graph: Graph) -> bool:
    """Does a cut copy of the user's class compute what the graph computes, at its own dtype, on every example?"""
    try:
        errors = [error_between(call(made, e, graph), call(copy, e, graph)) for e in graph.examples]
    except REFUSALS:
        return False
    return max(errors) <= native_bound(copy)
