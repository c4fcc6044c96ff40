"""One line of a captured program: an operation, its arguments, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import torch


@dataclass(frozen=True)
class Ref:
    """The value of another node."""

    name: str


@dataclass(frozen=True)
class Meta:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Out: TypeAlias = "Meta | tuple[Meta, ...] | None"


@dataclass(frozen=True, eq=False)
class Node:
    """`name = op(*args, **kwargs)`, issued by the module at path `module`.

    `op` is an ATen overload such as `aten.conv2d.default`, or one of `input`, `state`, `constant` (a tensor that
    comes from outside; `args` holds its key) and `getitem`.
    """

    name: str
    op: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    out: Out = None
    module: str = ""

    @property
    def meta(self) -> Meta:
        assert isinstance(self.out, Meta), f"{self.name} is not a single tensor"
        return self.out

    @property
    def plain(self) -> str:
        """The operation without namespace, overload and in-place underscore."""
        return plain(self.op)

    def refs(self) -> Iterator[Ref]:
        """Every value this node reads."""
        yield from find_refs((self.args, self.kwargs))

    def bound(self) -> dict[str, Any]:
        """All arguments by name, defaults filled in; nothing for what is no operation."""
        if "." not in self.op:
            return {}
        names, defaults = signature(self.op)
        return {**defaults, **dict(zip(names, self.args, strict=False)), **self.kwargs}


def find_refs(value: Any) -> Iterator[Ref]:
    """Every reference inside nested arguments."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from find_refs(item)
    elif isinstance(value, Mapping):
        yield from find_refs(list(value.values()))  # pyright: ignore[reportUnknownArgumentType]


@cache
def plain(op: str) -> str:
    """`aten.relu_.default` -> `relu`; what is no operation stays as it is."""
    name = op.split(".")[1] if "." in op else op
    return name if name.startswith("__") else name.removesuffix("_")


@cache
def overload(op: str) -> Any:
    """`aten.conv2d.default` -> `torch.ops.aten.conv2d.default`."""
    found: Any = torch.ops
    for part in op.split("."):
        found = getattr(found, part)
    return found


@cache
def signature(op: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Argument names of an operation in order, and the defaults of those that have one."""
    arguments = overload(op)._schema.arguments
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return tuple(a.name for a in arguments), defaults
