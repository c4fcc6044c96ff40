"""A model called with its tensors alone, and the names of what goes in and comes out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn

from prunus.graph.nest import Path, Spec, input_tensors, take_outputs, with_tensors
from prunus.types import Inputs


class Flat(nn.Module):
    """The example's call with other tensors in the same places; its other values stay. Returns the tensors alone."""

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        super().__init__()
        self.model = model
        self._example = example
        self._paths = list(input_tensors(example))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        call = with_tensors(self._example, dict(zip(self._paths, tensors, strict=True)))
        return tuple(take_outputs(self.model(*call.args, **call.kwargs))[0])


def input_names(model: nn.Module, example: Inputs) -> list[str]:
    """One name a tensor of the call: its argument in the signature of `forward`, or its key in a dict.

    >>> input_names(nn.Linear(4, 2), Inputs.of((1,)))
    []
    >>> import torch
    >>> input_names(nn.Linear(4, 2), Inputs.of(torch.ones(3, 4)))
    ['input']
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    arguments = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]
    return unique(_input_name(path, arguments) for path in input_tensors(example))


def _input_name(path: Path, arguments: Sequence[str]) -> str:
    keys = [part for part in path[1:] if isinstance(part, str)]
    if keys:
        return keys[-1]
    place = path[1]
    return arguments[place] if isinstance(place, int) and place < len(arguments) else "input"


def output_names(spec: Spec, inputs: Iterable[str]) -> list[str]:
    """One name a tensor of the result: its key or field, `output` where it has none; numbered where they repeat.

    >>> output_names({"tuple": [{"tensor": 0}, {"dict": {"logits": {"tensor": 1}}}, {"tensor": 2}]}, ["x"])
    ['output', 'logits', 'output_1']
    """
    return unique(_leaves(spec, "output"), inputs)


def _leaves(spec: Spec, name: str) -> Iterator[str]:
    if "tensor" in spec:
        yield name
    elif "dict" in spec:
        for key, inner in spec["dict"].items():
            yield from _leaves(inner, key)
    else:
        items = spec.get("list", spec.get("tuple", []))
        for key, inner in zip(spec.get("fields", [name] * len(items)), items, strict=True):
            yield from _leaves(inner, key)


def unique(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Names that differ from each other and from those taken: the second `x` is `x_1`.

    >>> unique(["x", "x", "y", "x"], ["y"])
    ['x', 'x_1', 'y_1', 'x_2']
    """
    used, made = set(taken), list[str]()
    for name in names:
        number, free = 0, name
        while free in used:
            number += 1
            free = f"{name}_{number}"
        used.add(free)
        made.append(free)
    return made
