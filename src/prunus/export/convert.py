"""From a captured program to an ONNX model with readable names and nothing of this computer in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from prunus.errors import ExportError
from prunus.export.capture import brief
from prunus.export.exported import Size
from prunus.export.quiet import quiet

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

LIMIT = 2**31 - 1
"""Bytes that one protobuf file holds at most."""
_PREFIX = "model."
"""What `Flat` puts before the names of the state."""


def convert(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> ModelProto:
    """The program as an optimised ONNX model of that opset, its weights inside.

    Raises ExportError where an operation has no translation, or the model cannot be written at that opset.
    """
    with quiet():
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=opset,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(
                f"torch.onnx cannot translate the model: {_cause(error)} Rewrite that operation with others, or leave "
                "it out of the exported part."
            ) from error
    assert made is not None  # as dynamo=True
    proto: Any = made.model_proto
    written = {entry.domain: entry.version for entry in proto.opset_import}.get("")
    if written != opset:
        raise ExportError(
            f"torch.onnx cannot write this model at opset={opset}; it wrote {written} instead. Pass an older opset=, "
            "or leave it out."
        )
    return proto


def check_size(size: int) -> None:
    """Raises ExportError where so many bytes do not fit into one file."""
    if size > LIMIT:
        raise ExportError(
            f"The model takes {size / 2**30:.2f} GiB, but one ONNX file holds at most {LIMIT / 2**30:.0f} GiB (the "
            "limit of protobuf). Export it in half precision (model.half(), with half inputs), prune it further, or "
            "export it in parts."
        )


def tidy(proto: ModelProto, batched: Collection[str]) -> None:
    """Name the weights as the model does and the free sizes after the inputs; drop what tells of this computer.

    `batched` are the inputs whose first size is the batch. torch.onnx notes in every node where in the source it comes
    from: file paths and code of the user, which no runtime reads and which may take more room than the weights.
    """
    graphs = list(_graphs(proto.graph))
    _rename_weights(proto, graphs)
    names = _size_names(proto.graph.input, batched)
    for graph in graphs:
        graph.ClearField("metadata_props")
        for node in graph.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.ClearField("metadata_props")
            value.ClearField("doc_string")
        for value in (*graph.input, *graph.output, *graph.value_info):
            _rename_sizes(value, names)


def sizes(values: Sequence[ValueInfoProto]) -> dict[str, tuple[Size, ...]]:
    """The shape of every input or output; a free size is a name."""
    return {v.name: tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those of its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)


def _rename_weights(proto: ModelProto, graphs: Sequence[GraphProto]) -> None:
    used = {name for graph in graphs for node in graph.node for name in (*node.input, *node.output)}
    used |= {value.name for value in proto.graph.input}
    plain = {t.name: t.name.removeprefix(_PREFIX) for t in proto.graph.initializer if t.name.startswith(_PREFIX)}
    plain = {name: short for name, short in plain.items() if short not in used}
    for tensor in proto.graph.initializer:
        tensor.name = plain.get(tensor.name, tensor.name)
    for value in proto.graph.value_info:
        value.name = plain.get(value.name, value.name)
    for graph in graphs:
        for node in graph.node:
            node.input[:] = [plain.get(name, name) for name in node.input]


def _size_names(inputs: Sequence[ValueInfoProto], batched: Collection[str]) -> dict[str, str]:
    """Symbol -> name: `batch`, or the input and dimension where it comes first.

    Two inputs whose batches need not be equal (a mask is broadcast) have two symbols; both are the batch all the same.
    """
    names: dict[str, str] = {}
    for value in inputs:
        for place, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_param.isidentifier():
                carries = place == 0 and value.name in batched
                names[size.dim_param] = "batch" if carries else names.get(size.dim_param, f"{value.name}_{place}")
    return names


def _rename_sizes(value: ValueInfoProto, names: Mapping[str, str]) -> None:
    """Put names for symbols; torch.onnx writes a size that turned out to be fixed as a symbol '4'."""
    for size in value.type.tensor_type.shape.dim:
        if size.dim_param.isdecimal():
            size.dim_value = int(size.dim_param)
        elif size.dim_param:
            size.dim_param = re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), size.dim_param)


def _cause(error: BaseException) -> str:
    """The innermost reason that torch.onnx gives."""
    while error.__cause__ is not None:
        error = error.__cause__
    return brief(error)
