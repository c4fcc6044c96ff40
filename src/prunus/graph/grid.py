"""`Grid`: how units lie within one weight. The index is implicit: a unit's place follows from its number."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Blocks of (outputs, inputs) over a weight, at each place of its kernel.

    `outputs` and `inputs` say which dimensions of the weight those are. Units are numbered along (block of outputs,
    block of inputs, kernel place), the last fastest.

    >>> Grid((4, 6, 3, 3), (4, 1)).size
    54
    """

    shape: tuple[int, ...]
    block: tuple[int, int] = (1, 1)
    outputs: int = 0
    inputs: int = 1

    @property
    def rows(self) -> int:
        """Blocks along the outputs; a row of the grid is what scope="row" speaks of."""
        return self.shape[self.outputs] // self.block[0]

    @property
    def elements(self) -> int:
        """Elements of one unit."""
        return self.block[0] * self.block[1]

    @property
    def size(self) -> int:
        return prod(self.shape) // self.elements

    @property
    def _parts(self) -> tuple[int, int, int, int, int]:
        r, c = self.block
        kernel = prod(self.shape) // (self.shape[self.outputs] * self.shape[self.inputs])
        return self.rows, r, self.shape[self.inputs] // c, c, kernel

    def cells(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as (units, elements of each)."""
        flat = tensor.movedim((self.outputs, self.inputs), (0, 1))
        return flat.reshape(self._parts).permute(0, 2, 4, 1, 3).reshape(self.size, self.elements)

    def spread(self, units: Tensor) -> Tensor:
        """A value a unit (units,), as a tensor of the weight's shape; a view where that is possible."""
        rows, r, cols, c, kernel = self._parts
        flat = units.view(rows, 1, cols, 1, kernel).expand(rows, r, cols, c, kernel)
        others = [n for dim, n in enumerate(self.shape) if dim not in (self.outputs, self.inputs)]
        return flat.reshape(rows * r, cols * c, *others).movedim((0, 1), (self.outputs, self.inputs))

    def along_inputs(self, units: Tensor, m: int) -> Tensor:
        """Units of single elements as (output, cell, m consecutive inputs, kernel place)."""
        rows, _, cols, _, kernel = self._parts
        return units.view(rows, cols // m, m, kernel)
