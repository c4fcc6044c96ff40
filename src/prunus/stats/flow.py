"""How much reaches the outputs through each weight, if all weights were positive: no data are needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus.errors import CriterionError
from prunus.graph.graph import Graph
from prunus.graph.nest import input_tensors, take_outputs, with_tensors
from prunus.graph.private import adopt_plain_tensors, private_copy
from prunus.types import Inputs

NO_INPUTS = (
    "This criterion runs the model on inputs of ones, whose shapes it takes from the traced model: make the groups of "
    "prunus.trace(model, inputs) rather than of the model."
)


def flow(model: nn.Module, graph: Graph | None) -> Mapping[str, Tensor]:
    """∂R/∂|w|, in float64: R is the sum of all results, with absolute parameters and floating inputs of ones.

    The model runs in eval mode on the shapes of the example calls, all of which count; inputs of whole numbers stay
    what they are.
    """
    if graph is None:
        raise CriterionError(NO_INPUTS)
    copy = private_copy(model).eval()
    adopt_plain_tensors(copy)
    state = {name: _double(t.detach()) for name, t in (*copy.named_parameters(), *copy.named_buffers())}
    weights = {n: state[n].abs().requires_grad_() for n, p in copy.named_parameters() if p.is_floating_point()}
    with torch.enable_grad():
        total = torch.stack([_result(copy, {**state, **weights}, _ones(e)) for e in graph.examples]).sum()
        grads = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    reached: list[Tensor | None] = list(grads)
    return {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(weights.items(), reached, strict=True)}


def _result(model: nn.Module, state: Mapping[str, Tensor], ones: Inputs) -> Tensor:
    """The sum of all results of one call."""
    try:
        out: Any = functional_call(model, dict(state), ones.args, dict(ones.kwargs))
    except RuntimeError as error:
        raise CriterionError(
            f"synflow runs the model in float64, which its code does not allow: {error}. Most likely a tensor of its "
            "own is not registered as a buffer, or it casts to float32. Take another criterion."
        ) from error
    return torch.stack([t.double().sum() for t in take_outputs(out)[0] if t.requires_grad]).sum()


def _ones(example: Inputs) -> Inputs:
    given = input_tensors(example)
    ones = {path: torch.ones_like(t).double() if t.is_floating_point() else t for path, t in given.items()}
    return with_tensors(example, ones)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
