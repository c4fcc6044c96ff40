"""Which part of which parameter is this tensor? Told by where it lies in memory, through views and copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass(frozen=True)
class Part:
    """A box of a parameter: where it starts and how far it goes along each dimension of the parameter.

    `dims`: for each dimension of the tensor at hand that of the parameter; None for one of length 1 or expanded.
    """

    name: str
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    dims: tuple[int | None, ...]

    def picked(self, dim: int, index: int) -> Part:
        """What is left of it at one index along a dimension of the tensor at hand."""
        of = self.dims[dim]
        dims = (*self.dims[:dim], *self.dims[dim + 1 :])
        if of is None:
            return Part(self.name, self.starts, self.sizes, dims)
        starts = tuple(s + index if d == of else s for d, s in enumerate(self.starts))
        sizes = tuple(1 if d == of else n for d, n in enumerate(self.sizes))
        return Part(self.name, starts, sizes, dims)


@dataclass(frozen=True, eq=False)
class _Known:
    """Memory that holds a part of a parameter: laid out by `sizes` and `strides` from `offset` on."""

    memory: StorageWeakRef
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    part: Part


class Parts:
    """Knows the parameters of a model, and whatever was copied from them while it watched."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._known: dict[int, list[_Known]] = {}
        for name, p in parameters.items():
            self._add(p, Part(name, (0,) * p.ndim, tuple(p.shape), tuple(range(p.ndim))))

    def copied(self, given: Tensor, made: Tensor) -> None:
        """A copy of the same shape holds what the original holds."""
        part = self.find(given)
        if part is not None and made.shape == given.shape:
            self._add(made, part)

    def find(self, tensor: Tensor) -> Part | None:
        """The part of a parameter that a tensor is; None where it is none, or lies in no box of it."""
        for known in reversed(self._known.get(tensor.untyped_storage().data_ptr(), [])):
            if not known.memory.expired() and (found := _within(known, tensor)):
                return found
        return None

    def _add(self, tensor: Tensor, part: Part) -> None:
        memory = tensor.untyped_storage()
        known = _Known(StorageWeakRef(memory), int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), part)
        self._known.setdefault(memory.data_ptr(), []).append(known)


def _within(known: _Known, tensor: Tensor) -> Part | None:
    starts = _starts(known, int(tensor.storage_offset()) - known.offset)
    if starts is None:
        return None
    whole, part = known.sizes, known.part
    begins = list(part.starts)
    for dim, start in enumerate(starts):
        if (of := part.dims[dim]) is not None:
            begins[of] += start
    sizes = list(part.sizes)
    dims: list[int | None] = []
    free = [d for d, n in enumerate(whole) if n > 1]
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if size == 1 or stride == 0:
            dims.append(None)
            continue
        fits = [d for d in free if known.strides[d] == stride and starts[d] + size <= whole[d]]
        if not fits:
            return None
        free.remove(fits[0])
        dims.append(part.dims[fits[0]])
        if (of := part.dims[fits[0]]) is not None:
            sizes[of] = size
    for dim in free:  # what is left out of the tensor was picked at one index
        if (of := part.dims[dim]) is not None:
            sizes[of] = 1
    return Part(part.name, tuple(begins), tuple(sizes), tuple(dims))


def _starts(known: _Known, offset: int) -> Sequence[int] | None:
    """The index along each dimension at which memory `offset` elements further on lies."""
    starts = [0] * len(known.sizes)
    for dim in sorted(range(len(known.sizes)), key=lambda d: -known.strides[d]):
        if known.sizes[dim] > 1 and known.strides[dim] > 0:
            starts[dim], offset = divmod(offset, known.strides[dim])
            if not 0 <= starts[dim] < known.sizes[dim]:
                return None
    return starts if offset == 0 else None
