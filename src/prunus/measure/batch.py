"""The example call at another batch size: its rows repeated, or the first of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.errors import MeasureError
from prunus.measure.untouched import mapped, tensors
from prunus.types import Inputs


def with_rows(tensor: Tensor, size: int) -> Tensor:
    """The first `size` rows of a tensor, which begins again where it has fewer."""
    return tensor[torch.arange(size, device=tensor.device) % len(tensor)]


def with_batch(example: Inputs, size: int) -> Inputs:
    """The call with `size` rows in every tensor.

    Raises MeasureError unless dim 0 of every tensor is the batch: there is one, and all are equally long.

    >>> with_batch(Inputs.of(torch.tensor([1, 2])), 3).args
    (tensor([1, 2, 1]),)
    """
    given = tensors((example.args, dict(example.kwargs)))
    rows = {t.shape[0] if t.ndim else 0 for t in given}
    if len(rows) != 1 or rows == {0}:
        shapes = ", ".join(str(tuple(t.shape)) for t in given) or "no tensors"
        raise MeasureError(
            f"batch={size} needs inputs whose dim 0 is the batch, equally long in all of them and not empty; these are "
            f"{shapes}. Leave batch out, and pass an example of the size to be measured."
        )

    def resized(leaf: Any) -> Any:
        return with_rows(leaf, size) if isinstance(leaf, Tensor) else leaf

    return Inputs(mapped(example.args, resized), mapped(dict(example.kwargs), resized))
