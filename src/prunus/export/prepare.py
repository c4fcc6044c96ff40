"""What is exported: a private copy of the model on the CPU, its examples as tensors, and the names of both ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunus.errors import ExportError
from prunus.export.batch import batched, check_alike
from prunus.export.capture import FIXED, brief
from prunus.export.convert import check_size
from prunus.export.flat import Flat, input_names, output_names
from prunus.graph.nest import input_tensors, take_outputs, with_tensors
from prunus.graph.private import private_copy, state_of, unwrap
from prunus.types import Inputs


@dataclass(frozen=True, eq=False)
class Subject:
    """A private copy of the model, its examples as calls with tensors alone, and the names of both ends."""

    flats: list[Flat]
    calls: list[list[Tensor]]
    inputs: list[str]
    outputs: list[str]
    left_out: list[str]
    dynamic: bool

    @property
    def places(self) -> list[int]:
        """Those of the tensors that carry the batch; none where it is fixed."""
        return batched(self.calls) if self.dynamic else []


def prepare(model: nn.Module, inputs: Any, dynamic: bool) -> Subject:
    """Read the model and its examples. Nothing of the user's is written to.

    Raises ExportError where the model is too big, bfloat16 or without values, refuses its example, or has no batch
    that could be `dynamic`.
    """
    inner = unwrap(model)
    state = state_of(inner).tensors
    _check_computes(state)
    check_size(sum(t.numel() * t.element_size() for t in state.values()))
    here = all(t.device.type == "cpu" for t in state.values())
    mine = private_copy(inner, share=here).cpu().eval()
    examples = [_on_cpu(example) for example in Inputs.examples(inputs)]
    calls = [list(input_tensors(example).values()) for example in examples]
    _check_dtypes([*state.values(), *calls[0]])
    names = input_names(mine, examples[0])
    check_alike(calls, names)
    outputs, left_out = _results(mine, examples[0], names)
    subject = Subject([Flat(mine, e) for e in examples], calls, names, outputs, left_out, dynamic)
    if dynamic and not (subject.places and len(calls[0][subject.places[0]])):
        raise ExportError(f"The example has no batch: its tensors have no or an empty dim 0. {FIXED} pass a batch.")
    return subject


def _check_computes(state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if is_lazy(tensor) or tensor.is_meta:
            raise ExportError(
                f"{name!r} has no values yet (a lazy module, or the meta device). Load the weights, and call the model "
                "once on its inputs."
            )


def _on_cpu(example: Inputs) -> Inputs:
    return with_tensors(example, {path: t.detach().cpu() for path, t in input_tensors(example).items()})


def _check_dtypes(tensors: Sequence[Tensor]) -> None:
    if any(t.dtype is torch.bfloat16 for t in tensors):
        raise ExportError(
            "The model or its inputs are bfloat16, which ONNX Runtime does not compute on the CPU, so that the file "
            "could not be checked. Export model.float() or model.half(), with inputs of the same dtype."
        )


def _results(model: nn.Module, example: Inputs, inputs: list[str]) -> tuple[list[str], list[str]]:
    """(names of the results, names of what is no tensor and stays out of the file)."""
    own = with_tensors(example, {path: t.clone() for path, t in input_tensors(example).items()})
    try:
        _, spec, left_out = take_outputs(model(*own.args, **own.kwargs))
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} refuses the example inputs: {brief(error)} Pass inputs the model runs on: a "
            "tensor, a tuple of arguments, or a dict of keyword arguments."
        ) from error
    return output_names(spec, inputs), left_out
