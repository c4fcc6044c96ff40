"""What is multiplied by which parameter? Seen at each product as it runs, so that functional calls count too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.stats.parts import Part, Parts

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Kernel:
    """How the weight of a convolution moves over its input; each with one number a position dimension."""

    size: tuple[int, ...]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]


@dataclass(frozen=True, eq=False)
class Read:
    """One product of a parameter with values `x`: (samples, inputs, *positions), summed over the inputs.

    `into` and `out` are the dimensions of the parameter along which its inputs and outputs run. A convolution of
    `groups` has the inputs of one group along `into`, and `kernel`; a transposed one has neither, and says so.
    """

    part: Part
    x: Tensor
    into: int
    out: int | None
    groups: int = 1
    kernel: Kernel | None = None
    transposed: bool = False

    def columns(self) -> Tensor:
        """What each output is a sum of: (groups, samples and positions, inputs of a group and kernel)."""
        x = self.x
        columns = x[:, :, None] if self.kernel is None else _unfolded(x, self.kernel)
        n, c, k = columns.shape[:3]
        flat = columns.reshape(n, self.groups, c // self.groups * k, -1)
        return flat.permute(1, 0, 3, 2).reshape(self.groups, -1, c // self.groups * k)


class Products(TorchDispatchMode):
    """Calls `see` for each product with a parameter, while the context lasts."""

    def __init__(self, parameters: Mapping[str, Tensor], see: Callable[[Read], None]) -> None:
        super().__init__()
        self._parts, self._see = Parts(parameters), see

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _READS:
            with self:  # operations made of others are taken apart, as inference mode does not
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        if func in _COPIES and isinstance(made, Tensor):
            self._parts.copied(args[0], made)
        for read in _READS[func](self._parts, *args, **kwargs) if func in _READS else ():
            self._see(read)
        return made


def _matrices(parts: Parts, a: Tensor, b: Tensor, **_: Any) -> Iterator[Read]:
    """(rows, inputs) times (inputs, outputs)."""
    if part := parts.find(b):
        yield from _read(part, a, 0, 1)
    if part := parts.find(a):
        yield from _read(part, b.t(), 1, 0)


def _read(part: Part, x: Tensor, into: int, out: int) -> Iterator[Read]:
    if (of := part.dims[into]) is not None:
        yield Read(part, x, of, part.dims[out])


def _batches(parts: Parts, a: Tensor, b: Tensor, **_: Any) -> Iterator[Read]:
    """(batch, rows, inputs) times (batch, inputs, outputs), one after the other."""
    for weight, x, into, out in ((b, a, 0, 1), (a, b.transpose(1, 2), 1, 0)):
        part = parts.find(weight)
        if part is not None and part.dims[0] is None:
            yield from _read(part.picked(0, 0), x.reshape(-1, x.shape[2]), into, out)
        elif part is not None:
            for index, rows in enumerate(x):
                yield from _read(part.picked(0, index), rows, into, out)


def _vector(parts: Parts, a: Tensor, b: Tensor, **_: Any) -> Iterator[Read]:
    """(rows, inputs) times (inputs,): either may be the weight."""
    if part := parts.find(a):
        yield from _read(part, b[None], 1, 0)
    if (part := parts.find(b)) and (of := part.dims[0]) is not None:
        yield Read(part, a, of, None)


def _added(of: Callable[..., Iterator[Read]]) -> Callable[..., Iterator[Read]]:
    return lambda parts, _, a, b, **kwargs: of(parts, a, b, **kwargs)


def _convolution(
    parts: Parts,
    x: Tensor,
    weight: Tensor,
    _bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: Sequence[int],
    groups: int,
) -> Iterator[Read]:
    part = parts.find(weight)
    if part is None:
        return
    dims = [d if of is None else of for d, of in enumerate(part.dims)]  # those of length 1 stand where they stand
    if transposed:
        yield Read(part, x, dims[0], dims[1], transposed=True)
    else:
        kernel = Kernel(tuple(weight.shape[2:]), stride, padding, dilation)
        yield Read(part, x, dims[1], dims[0], groups, kernel)


def _unfolded(x: Tensor, kernel: Kernel) -> Tensor:
    """(samples, inputs, *positions) -> (samples, inputs, kernel elements, output positions)."""
    for dim, padding in enumerate(kernel.padding, 2):
        x = torch.cat([edge := x.new_zeros([padding if d == dim else n for d, n in enumerate(x.shape)]), x, edge], dim)
    ranges = list(zip(kernel.size, kernel.stride, kernel.dilation, x.shape[2:], strict=True))
    seen: list[Tensor] = []
    for offsets in product(*(range(size) for size in kernel.size)):
        window = tuple(
            slice(o * step, n - (size - 1 - o) * step, stride)
            for o, (size, stride, step, n) in zip(offsets, ranges, strict=True)
        )
        seen.append(x[(..., *window)].flatten(2))
    return torch.stack(seen, 2)


_COPIES = (aten.clone.default, aten._to_copy.default)
_READS: Mapping[Any, Callable[..., Iterator[Read]]] = {
    aten.mm.default: _matrices,
    aten.addmm.default: _added(_matrices),
    aten.bmm.default: _batches,
    aten.baddbmm.default: _added(_batches),
    aten.mv.default: _vector,
    aten.addmv.default: _added(_vector),
    aten.convolution.default: _convolution,
}
