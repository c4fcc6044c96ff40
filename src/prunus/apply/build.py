"""The smaller model as a graph: state cut, constants cut, sizes rewritten."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.graph.fit import fit, fit_constants
from prunus.graph.graph import Graph
from prunus.graph.interpret import GraphModel
from prunus.graph.layout import in_format, is_channels_last
from prunus.graph.nest import input_settings, input_tensors
from prunus.graph.private import state_of
from prunus.graph.width import Keep, counts, mask_of, share_of, touched


def cut_state(graph: Graph, state: Mapping[str, Tensor], keep: Keep, alive: Keep) -> dict[str, Tensor]:
    """State at the widths of `alive`, cut to those of `keep`."""
    return {name: cut_one(graph, name, tensor, keep, alive) for name, tensor in state.items() if name in graph.state}


def cut_one(graph: Graph, name: str, tensor: Tensor, keep: Keep, alive: Keep) -> Tensor:
    """One state tensor, cut; the same tensor where nothing of it goes. Memory format is kept."""
    whole = tensor
    if name in graph.rms_axes and (grown := _grown(graph, name, keep, alive)) != 1:
        tensor = tensor * grown
    for dim, axis in enumerate(graph.state_axes[name]):
        if touched(axis, keep):
            stays = mask_of(axis, keep)[mask_of(axis, alive)]
            if not bool(stays.all()):
                tensor = tensor.index_select(dim, stays.nonzero().flatten().to(tensor.device))
    return tensor if tensor is whole or not is_channels_last(whole) else in_format(tensor, channels_last=True)


def _grown(graph: Graph, name: str, keep: Keep, alive: Keep) -> float:
    """The factor of a weight that takes the share of a root mean square that goes on dividing by the whole count."""
    before, after = (share_of(graph.rms_axes[name], counts(units)) for units in (alive, keep))
    return (before / after) ** 0.5


def graph_model(graph: Graph, model: nn.Module, keep: Keep, alive: Keep) -> GraphModel:
    """The graph at the widths of `keep`, with the cut weights of `model`, which is at the widths of `alive`."""
    state = state_of(model).tensors
    cut = cut_state(graph, state, keep, alive)
    tensors = {name: _own(t, state[name]) for name, t in cut.items()}
    made = GraphModel(
        (fit(graph, graph.eval, keep), fit(graph, graph.train, keep) if graph.train else None),
        tensors,
        graph.parameters,
        fit_constants(graph, keep),
        graph.aliases,
        graph.hidden,
        list(input_tensors(graph.inputs)),
        input_settings(graph.inputs),
    )
    return made.train(model.training)


def _own(cut: Tensor, whole: Tensor) -> Tensor:
    """A tensor of its own, with the whole one's `requires_grad`."""
    return cut.detach().clone(memory_format=torch.preserve_format).requires_grad_(whole.requires_grad)
