"""Shapes of operations that run on this machine, but that torch refuses to follow without values."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import fake_impls


def _grouped_mm(
    _mode: Any, _op: Any, self: Tensor, mat2: Tensor, offs: Tensor | None = None, *_rest: Any, **_: Any
) -> Any:
    """Rows (s, i), each by the matrix of its expert: (e, i, o) -> (s, o). Torch follows bfloat16 alone."""
    if (self.ndim, mat2.ndim) != (2, 3) or offs is None:
        return NotImplemented  # torch then goes on by itself
    return self.new_empty((self.shape[0], mat2.shape[2]))


_KNOWN: dict[Any, Callable[..., Any]] = {torch.ops.aten._grouped_mm.default: _grouped_mm}


@contextmanager
def shapes_known() -> Generator[None]:
    """Inside, these operations have shapes under fake tensors."""
    table: dict[Any, Any] = fake_impls.op_implementations_dict
    before = {op: table[op] for op in _KNOWN if op in table}
    table.update(_KNOWN)
    try:
        yield
    finally:
        for op in _KNOWN:
            del table[op]
        table.update(before)
