"""Operations that torch has in float32, but not in the float64 of proofs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def _grouped_mm(self: Tensor, mat2: Tensor, offs: Tensor, *_: Any) -> Tensor:
    """Rows (s, i), sorted by expert, each by the matrix of its own: (e, i, o) -> (s, o). `offs`: where each ends."""
    pieces = self.tensor_split(offs.cpu().long())[: len(mat2)]
    made = torch.cat([rows @ matrix for rows, matrix in zip(pieces, mat2, strict=True)])
    return torch.cat([made, made.new_zeros(len(self) - len(made), made.shape[1])])


WIDE: Mapping[str, Callable[..., Tensor]] = {"aten._grouped_mm.default": _grouped_mm}
