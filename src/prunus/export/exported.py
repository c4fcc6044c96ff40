"""What an exported file holds, and how far it is from the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Size: TypeAlias = int | str
"""A number, or the name of a size that is free, such as `batch`."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked. It stands for its path: `open(exported)`, `Path(exported)`.

    `weights` is the floating-point numbers held in the file, `zeros` those of them that are exactly zero, `shapes`
    their tensors. Batch norms are folded into the layers before them, equal tensors held once, small transposes carried
    out, and constants of the computation count along, so that these are the file's figures and not quite the model's.
    `worst_error` is the largest difference to PyTorch over the largest value of the same output, over `compared` calls
    at `batches`. `left_out` names results that are no tensors (caches); `blind` outputs were zero in every call, so
    that nothing was compared there: the last layer may begin at zero.
    """

    path: Path
    opset: int
    bytes: int
    weights: int
    zeros: int
    worst_error: float
    compared: int
    batches: tuple[int, ...]
    runtime: str
    inputs: Mapping[str, tuple[Size, ...]]
    outputs: Mapping[str, tuple[Size, ...]]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    left_out: tuple[str, ...] = ()
    blind: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        share = self.zeros / max(self.weights, 1)
        batches = f" at batch {', '.join(map(str, self.batches))}" if self.batches else ""
        lines = [
            f"{self.path.name}: ONNX opset {self.opset}, {self.bytes:,} bytes",
            *(f"  in   {name} {_sizes(shape)}" for name, shape in self.inputs.items()),
            *(f"  out  {name} {_sizes(shape)}" for name, shape in self.outputs.items()),
            *(f"  left out: {name}" for name in self.left_out),
            f"  {self.weights:,} weights in {len(self.shapes)} tensors, {self.zeros:,} of them zero ({share:.1%})",
            *(f"  {name!r} was zero in every call: nothing could be compared there" for name in self.blind),
            f"  checked in {self.runtime}: error at most {self.worst_error:.1e} of the output's scale, "
            f"{self.compared} calls{batches}",
        ]
        return "\n".join(lines)


def _sizes(shape: tuple[Size, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
