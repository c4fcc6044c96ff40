"""Which sizes of the inputs are free in the file, and inputs of the same kind with other sizes and values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from prunus.errors import ExportError
from prunus.measure.batch import with_rows

Call: TypeAlias = Sequence[Tensor]
"""The tensors of one call, in order."""


def batched(calls: Sequence[Call]) -> list[int]:
    """The places of the tensors that carry the batch: their first size is that of the first tensor, in every example.

    >>> batched([[torch.ones(4, 3), torch.ones(()), torch.ones(3, 3), torch.ones(4)]])
    [0, 3]
    """
    first = next((i for i, t in enumerate(calls[0]) if t.ndim), None)
    if first is None:
        return []
    return [i for i in range(len(calls[0])) if all(call[i].ndim and len(call[i]) == len(call[first]) for call in calls)]


def free_sizes(calls: Sequence[Call]) -> list[set[int]]:
    """For each tensor, the dimensions that are free: the batch, and those in which the examples differ.

    >>> free_sizes([[torch.ones(4, 3)], [torch.ones(4, 5)]])
    [{0, 1}]
    """
    free = [
        {d for d in range(t.ndim) if any(call[i].shape[d] != t.shape[d] for call in calls[1:])}
        for i, t in enumerate(calls[0])
    ]
    for i in batched(calls):
        free[i].add(0)
    return free


def check_alike(calls: Sequence[Call], names: Sequence[str]) -> None:
    """Raises ExportError unless every example has the tensors of the first, of as many dimensions."""
    for number, call in enumerate(calls[1:], 2):
        if [t.ndim for t in call] != [t.ndim for t in calls[0]]:
            raise ExportError(
                f"Example {number} holds tensors of {[t.ndim for t in call]} dimensions; the first holds "
                f"{', '.join(names)}, of {[t.ndim for t in calls[0]]}. A list means several examples of one kind of "
                "call; pass a tuple for several arguments."
            )


def with_batch(call: Call, places: Collection[int], size: int) -> list[Tensor]:
    """The call at another batch size: its rows repeated, or the first of them.

    >>> with_batch([torch.tensor([1, 2]), torch.tensor([7, 8])], [0], 3)
    [tensor([1, 2, 1]), tensor([7, 8])]
    """
    return [with_rows(t, size) if i in places else t for i, t in enumerate(call)]


def redrawn(call: Call, seed: int = 0) -> list[Tensor]:
    """Other inputs of the same kind: noise with the mean and deviation of each floating tensor, within its range.

    Noise about a constant tensor is a tenth of it, or 0.1. Integers and booleans change places along the last
    dimension, those of one length alike, so that tokens stay with their mask; so do floats that are not all finite.
    """
    return [_redrawn(t, torch.Generator().manual_seed(seed)) for t in call]


def _redrawn(tensor: Tensor, random: torch.Generator) -> Tensor:
    if not tensor.ndim or not tensor.numel():
        return tensor.clone()
    if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        return tensor[..., torch.randperm(tensor.shape[-1], generator=random)]
    values = tensor.double()
    noise = torch.randn(tensor.shape, generator=random, dtype=torch.float64)
    low, high = values.aminmax()
    if low == high:
        return (values + 0.1 * low.abs().clamp(min=1.0) * noise).to(tensor.dtype)
    return (values.mean() + values.std(correction=0) * noise).clamp(low, high).to(tensor.dtype)
