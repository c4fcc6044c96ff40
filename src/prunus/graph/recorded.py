"""What torch recorded of a call, as a `Program` and its constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from prunus.errors import TraceError
from prunus.graph.nest import Path, Spec
from prunus.graph.node import Meta, Node, Out, Ref
from prunus.graph.program import Program

_OVERLOAD = type(torch.ops.aten.relu.default)


@dataclass(frozen=True, eq=False)
class Captured:
    """A program and the constant tensors it holds."""

    program: Program
    constants: dict[str, Tensor]


def read_recorded(
    module: fx.GraphModule, mode: str, keys: Sequence[tuple[str, str | Path]], spec: Spec, skipped: Sequence[str]
) -> Captured:
    nodes: list[Node] = []
    constants: dict[str, Tensor] = {}
    pending = iter(keys)
    results: tuple[str, ...] = ()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            kind, key = next(pending)
            nodes.append(Node(node.name, kind, (key,), out=_out(node.meta["val"])))
        elif node.op == "get_attr":
            key = f"{mode}:{node.name}"
            constants[key] = _constant(module, node)
            nodes.append(Node(node.name, "constant", (key,), out=_out(constants[key])))
        elif node.op == "output":
            results = tuple(n.name for n in node.args[0])
        elif isinstance(node.target, _OVERLOAD) or node.target.__name__ == "getitem":
            nodes.append(_operation(node))
        elif node.target.__name__ != "_set_grad_enabled":
            raise TraceError(f"The model calls {node.target}, which cannot be followed. Please report it.")
    return Captured(Program(tuple(nodes), results, spec, tuple(skipped)), constants)


def _operation(node: fx.Node) -> Node:
    op = str(node.target) if isinstance(node.target, _OVERLOAD) else "getitem"
    module = (node.meta.get("custom") or {}).get("module", "")
    kwargs = {key: _argument(value) for key, value in node.kwargs.items()}
    return Node(node.name, op, tuple(_argument(a) for a in node.args), kwargs, _out(node.meta.get("val")), module)


def _argument(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return Ref(value.name)
    if isinstance(value, list | tuple):
        return [_argument(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _constant(module: fx.GraphModule, node: fx.Node) -> Tensor:
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach()


def _out(value: Any) -> Out:
    if isinstance(value, Tensor):
        return Meta(tuple(value.shape), value.dtype)
    if isinstance(value, list | tuple):
        metas = [_out(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        return tuple(m for m in metas if isinstance(m, Meta))
    return None


def has_values(module: fx.GraphModule) -> bool:
    """Do shapes and constants of a recording stand on their own? Where they depend on values, torch has symbols."""
    for node in module.graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", ())
        hollow = node.op == "get_attr" and isinstance(_constant(module, node), FakeTensor)
        if hollow or any(type(size) is not int for size in shape):
            return False
    return True
