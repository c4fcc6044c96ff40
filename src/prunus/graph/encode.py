"""A program as JSON and back: only operations on a fixed list, only plain arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch

from prunus.errors import ArtifactError
from prunus.graph.node import Node, Ref, overload, signature
from prunus.graph.program import Program
from prunus.graph.rules import RULES

_WITHOUT_RULE = set(
    (
        "nonzero unique bucketize searchsorted index_add index_copy index_fill masked_select take "
        "take_along_dim cross cdist affine_grid_generator native_layer_norm native_group_norm fold rot90 "
        "logspace eye isin isclose multi_head_attention unsafe_split fused_moving_avg_obs_fake_quant "
        "alias_copy result_type is_floating_point unsafe_chunk addr vander outer ger inner kron trace diag "
        "diagonal diag_embed item resolve_conj resolve_neg"
    ).split()
)
ALLOWED = frozenset(name.partition(".")[0] for name in RULES if not name.startswith("torchvision")) | _WITHOUT_RULE
"""ATen names (without overload and in-place underscore) that a file may name. None reads files or prints."""

_OVERLOAD = type(overload("aten.relu.default"))
_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128".split()
}
_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
    "preserve": torch.preserve_format,
}


def encode_program(program: Program) -> dict[str, Any]:
    """Raises `ArtifactError` for an operation that is not on the list."""
    nodes = [
        {
            "name": node.name,
            "op": _allowed(node.op),
            "args": [encode(a) for a in node.args],
            "kwargs": {k: encode(v) for k, v in node.kwargs.items()},
        }
        for node in program.nodes
    ]
    return {"nodes": nodes, "outputs": list(program.outputs), "spec": program.spec}


def decode_program(data: Mapping[str, Any]) -> Program:
    """Raises `ArtifactError` for anything that `encode_program` does not write."""
    nodes: list[Node] = []
    known: set[str] = set()
    for entry in data["nodes"]:
        kwargs = {str(k): decode(v) for k, v in entry["kwargs"].items()}
        node = Node(str(entry["name"]), _allowed(str(entry["op"])), tuple(decode(a) for a in entry["args"]), kwargs)
        if unknown := [ref.name for ref in node.refs() if ref.name not in known]:
            raise ArtifactError(f"{node.name!r} reads {unknown[0]!r}, which nothing before it makes.")
        _check_arguments(node)
        known.add(node.name)
        nodes.append(node)
    outputs = tuple(str(name) for name in data["outputs"])
    if not set(outputs) <= known:
        raise ArtifactError("The results name values that nothing makes.")
    return Program(tuple(nodes), outputs, data["spec"])


def _check_arguments(node: Node) -> None:
    """The arguments are those that the operation takes, so that the program runs."""
    names, required, positional = _signature(node.op)
    given = {*positional[: len(node.args)], *node.kwargs}
    where = f"{node.name!r} ({node.op})"
    if len(node.args) > len(positional):
        raise ArtifactError(f"{where} has {len(node.args)} arguments; it takes {len(positional)}. The file is damaged.")
    if odd := [name for name in node.kwargs if name not in names]:
        raise ArtifactError(f"{where} takes no argument {odd[0]!r}; was the file written by another version of torch?")
    if lacking := [name for name in required if name not in given]:
        raise ArtifactError(f"{where} lacks its argument {lacking[0]!r}. The file is damaged; save the model again.")


def _signature(op: str) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """The arguments an operation knows, those it must have, and those it takes by position."""
    if "." not in op:
        own = ("value", "index") if op == "getitem" else ("key",)
        return own, own, own
    names, defaults = signature(op)
    by_position = [a.name for a in overload(op)._schema.arguments if not a.kwarg_only]
    return names, [name for name in names if name not in defaults], by_position


def _allowed(op: str) -> str:
    if op in ("input", "state", "constant", "getitem"):
        return op
    namespace, _, rest = op.partition(".")
    name, _, _variant = rest.partition(".")
    plain = name if name.startswith("__") or name in ALLOWED else name.removesuffix("_")
    if namespace != "aten" or plain not in ALLOWED:
        raise ArtifactError(
            f"The graph has the operation {op!r}, which is not on the list of operations that a file may name. "
            "If it only computes, please report it."
        )
    try:
        known = isinstance(overload(op), _OVERLOAD)
    except AttributeError:
        known = False
    if not known:
        raise ArtifactError(f"This version of torch has no operation {op!r}; was the file written by another?")
    return op


def encode(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, float) and not isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {"size": value}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, torch.device):
        return {"device": "of the inputs"}
    if isinstance(value, torch.layout):
        return {"layout": "strided"}
    for kind, table in (("dtype", _DTYPES), ("memory_format", _FORMATS)):
        for name, known in table.items():
            if value is known:
                return {kind: name}
    raise ArtifactError(f"An argument of type {type(value).__name__} cannot be written to a file.")


def decode(value: Any) -> Any:
    if isinstance(value, list):
        items: list[Any] = value
        return [decode(item) for item in items]
    if not isinstance(value, dict):
        return value
    entries: dict[str, Any] = value
    if len(entries) != 1:
        raise ArtifactError(f"An argument has the entries {', '.join(entries)}; expected one.")
    kind, inner = next(iter(entries.items()))
    if kind in ("ref", "float"):
        return Ref(str(inner)) if kind == "ref" else float(inner)
    if kind == "size":
        return _checked_size(inner)
    if kind in ("device", "layout"):
        return torch.device("cpu") if kind == "device" else torch.strided
    table: Mapping[str, Any] = {"dtype": _DTYPES, "memory_format": _FORMATS}.get(kind, {})
    if inner not in table:
        raise ArtifactError(f"An argument {kind}={inner!r} is unknown.")
    return table[inner]


def _checked_size(size: Any) -> Any:
    """An expression of input sizes: {"input": i, "dim": d}, {"times": [...]} or {"plus": [...]}."""
    if type(size) is int:
        return size
    if isinstance(size, dict):
        entries: dict[str, Any] = size
        if set(entries) == {"input", "dim"} and all(type(v) is int for v in entries.values()):
            return entries
        if set(entries) in ({"times"}, {"plus"}):
            return {kind: [_checked_size(p) for p in parts] for kind, parts in entries.items()}
    raise ArtifactError(f"A size is given as {size!r}; expected a number or an expression of input sizes.")
