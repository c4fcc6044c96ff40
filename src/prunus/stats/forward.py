"""One pass of the user's data through a private copy, and what each weight read in it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prunus.errors import CriterionError
from prunus.graph.private import private_copy
from prunus.graph.unfused import unfused
from prunus.stats.inputs import OfInputs, Table
from prunus.stats.products import Products, Read
from prunus.types import Batch

See = Callable[[Read], None]
Watch = Callable[[See], None]
"""Runs the model on the data and shows what every weight reads."""


def watch(model: nn.Module, data: Iterable[Batch], loss: Callable[[nn.Module, Batch], Any], see: See) -> None:
    """Call `loss(model, batch)` for every batch, in eval mode and without gradients; its value does not matter."""
    copy, count = private_copy(model).eval(), 0
    named = dict(copy.named_parameters())
    with torch.no_grad(), unfused(), _recurrent_unfused(copy), Products(named, see):
        for batch in data:
            loss(copy, batch)
            count += 1
    if count == 0:
        raise CriterionError("The data gave no batch; a criterion that looks at activations needs at least one.")


def tables(shapes: Mapping[str, tuple[int, ...]], of: OfInputs, watch: Watch) -> dict[str, Table]:
    """`of(x)` for whatever each weight reads, added up."""
    found = {name: Table(shape) for name, shape in shapes.items()}

    def see(read: Read) -> None:
        sums = of(read.x) if read.part.name in found else None
        if sums is not None:
            found[read.part.name].add(read, sums)

    watch(see)
    return {name: table for name, table in found.items() if table.channels}


@contextmanager
def _recurrent_unfused(model: nn.Module) -> Generator[None]:
    """Recurrent layers run as one kernel of oneDNN, in which no product is seen, unless that is switched off."""
    if not any(isinstance(m, nn.RNNBase) for m in model.modules()):
        yield
        return
    before = torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before[0])
