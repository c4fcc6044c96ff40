"""Draw all floating state anew, repeatably: default weights (identity norms, zero gains) hide wrong indices."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from prunus.graph.graph import Graph
from prunus.graph.nest import input_tensors, with_tensors
from prunus.graph.node import find_refs
from prunus.types import Inputs


def redrawer(
    graph: Graph, state: Mapping[str, Tensor], seed: int = 0, dtype: torch.dtype = torch.float64
) -> Callable[[str], Tensor]:
    """State name -> the same values at each call for one seed: scales and variances in [0.5, 1.5], biases
    and weights normal, weights with the variance that keeps activations in range. Integers stay as they are. What was
    drawn is kept in float32, on the device of the state; it is drawn on the CPU, so alike for every device.
    """
    biases = _biases(graph)

    @cache
    def draw(name: str) -> Tensor:
        given = state[name].detach()
        random = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
        if not given.dtype.is_floating_point:
            return given
        if given.ndim >= 2:
            fan_in = max(1, given.numel() // given.shape[0])
            return torch.randn(given.shape, generator=random).mul_(fan_in**-0.5).to(given.device)
        if name in biases:
            return torch.randn(given.shape, generator=random).mul_(0.5).to(given.device)
        return torch.rand(given.shape, generator=random).add_(0.5).to(given.device)

    def drawn(name: str) -> Tensor:
        values = draw(name)
        return values.to(dtype if values.dtype.is_floating_point else values.dtype, copy=True)

    return drawn


def _biases(graph: Graph) -> set[str]:
    """State that is added: biases and running means."""
    found: set[str] = set()
    for mode in graph.modes:
        for node in mode.program.nodes:
            bound = node.bound()
            for name in ("bias", "running_mean", "b_ih", "b_hh", "params"):  # in `params`, all that is one row
                for ref in find_refs(bound.get(name)):
                    found |= mode.inferred.roots.get(ref.name, frozenset())
    return found


def redraw_inputs(inputs: Inputs, seed: int = 0) -> Inputs:
    """Floating inputs drawn anew; integer ones cannot be, so their values change places along the last dimension."""
    tensors = {path: _redraw(t, seed) for path, t in input_tensors(inputs).items()}
    return with_tensors(inputs, tensors)


def _redraw(tensor: Tensor, seed: int) -> Tensor:
    random = torch.Generator().manual_seed((tensor.shape[-1] if tensor.ndim else 0) + seed)
    if tensor.dtype.is_floating_point:
        return torch.randn(tensor.shape, generator=random, dtype=tensor.dtype).to(tensor.device)
    if not tensor.ndim:
        return tensor.clone()
    return tensor[..., torch.randperm(tensor.shape[-1], generator=random).to(tensor.device)]
