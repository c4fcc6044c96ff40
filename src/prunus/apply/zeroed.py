"""The user's own module with the removed units zeroed: a reference that knows nothing of the graph."""

from __future__ import annotations

import torch
from torch import nn

from prunus.graph.graph import Graph
from prunus.graph.nest import input_tensors, with_tensors
from prunus.graph.private import adopt_plain_tensors, private_copy, state_of
from prunus.graph.width import Keep, mask_of
from prunus.types import Inputs


def zeroed(model: nn.Module, graph: Graph, keep: Keep, alive: Keep) -> nn.Module:
    """A copy of a model at the widths of `alive` in which all that is not in `keep` is zero."""
    copy = private_copy(model, share=False)
    adopt_plain_tensors(copy)
    zero_removed(copy, graph, keep, alive)
    return copy


def zero_removed(model: nn.Module, graph: Graph, keep: Keep, alive: Keep) -> None:
    """Zero, in place, every floating state slice of the units that go."""
    state = state_of(model).tensors
    for name, axes in graph.state_axes.items():
        for dim, axis in enumerate(axes if state[name].dtype.is_floating_point else ()):
            gone = ~mask_of(axis, keep)[mask_of(axis, alive)]
            if bool(gone.any()):
                state[name].detach().index_fill_(dim, gone.nonzero().flatten().to(state[name].device), 0)


def another_batch(graph: Graph, more: int = 1) -> Inputs:
    """The traced inputs with `more` samples, where the batch is free (no unknown operation fixes it)."""
    batch = {leaf for leaf, (_, dim) in graph.leaves.moving.items() if dim == 0}
    tensors = input_tensors(graph.inputs)
    if graph.unruled or not batch or any(t.ndim == 0 for t in tensors.values()):
        return graph.inputs
    return with_tensors(graph.inputs, {path: torch.cat([t, *[t[:1]] * more]) for path, t in tensors.items()})
