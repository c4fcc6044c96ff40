"""One call of a model as files that run no code, for another process: the captured graph, its weights and inputs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunus.errors import ArtifactError, MeasureError, TraceError
from prunus.graph.capture import capture
from prunus.graph.encode import decode_program, encode_program
from prunus.graph.interpret import GraphModel
from prunus.graph.layout import in_format, is_channels_last
from prunus.graph.nest import Path as Place
from prunus.graph.nest import input_tensors
from prunus.graph.private import State, adopt_plain_tensors, private_copy, state_of, unwrap
from prunus.graph.recorded import Captured
from prunus.types import Inputs

_GRAPH, _TENSORS = "graph.json", "tensors.safetensors"
_STATE, _CONSTANT, _INPUT = "state:", "constant:", "input:"


def write_call(folder: Path, model: nn.Module, example: Inputs, metric: str) -> None:
    """Capture one eval-mode call and write it. The model is not touched.

    Raises MeasureError, in the name of `metric`, for a model that cannot be captured or written.
    """
    try:
        captured, state = _captured(model, example)
        program = encode_program(captured.program)
    except (TraceError, ArtifactError) as error:
        raise MeasureError(
            f"{metric!r} runs the model's graph in a process of its own, but this model has none: {error} Or leave "
            f"{metric!r} out of metrics."
        ) from error
    inputs = input_tensors(example)
    tensors = {
        **{_STATE + name: t for name, t in state.tensors.items()},
        **{_CONSTANT + name: t for name, t in captured.constants.items()},
        **{f"{_INPUT}{i}": t for i, t in enumerate(inputs.values())},
    }
    save_file({key: _own(t) for key, t in tensors.items()}, folder / _TENSORS)
    graph = {
        "program": program,
        "aliases": state.aliases,
        "paths": [list(path) for path in inputs],
        "channels_last": [key for key, t in tensors.items() if is_channels_last(t)],
    }
    (folder / _GRAPH).write_text(json.dumps(graph))


def read_call(folder: Path) -> tuple[GraphModel, dict[Place, Tensor]]:
    """The model, in eval mode, and the tensors of its call by their places."""
    graph = json.loads((folder / _GRAPH).read_text())
    last = set(graph["channels_last"])
    tensors = {key: in_format(t, key in last) for key, t in load_file(folder / _TENSORS).items()}
    places: list[Place] = [tuple(path) for path in graph["paths"]]
    programs = decode_program(graph["program"]), None
    state, constants = _under(_STATE, tensors), _under(_CONSTANT, tensors)
    model = GraphModel(programs, state, (), constants, graph["aliases"], (), places, {})
    return model.eval(), {place: tensors[f"{_INPUT}{i}"] for i, place in enumerate(places)}


def _captured(model: nn.Module, example: Inputs) -> tuple[Captured, State]:
    mine = private_copy(unwrap(model))
    adopt_plain_tensors(mine)
    state = state_of(mine)
    return capture(mine, state, example, training=False, outputs=None), state


def _own(tensor: Tensor) -> Tensor:
    """The values in memory of their own, as safetensors refuses a part of another's."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
