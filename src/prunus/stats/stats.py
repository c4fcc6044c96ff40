"""`Stats`: what a criterion may look at. It pays for what it touches, and each is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from prunus.errors import CriterionError
from prunus.graph.graph import Graph
from prunus.stats.backward import gradients, hessian_times
from prunus.stats.flow import flow
from prunus.stats.forward import See, tables, watch
from prunus.stats.gram import Grams
from prunus.stats.inputs import OfInputs, Seen, Table, moments, read
from prunus.stats.products import Read
from prunus.types import Batch, Loss, wide


@dataclass(frozen=True, eq=False)
class Stats:
    """A read-only view of a model for criteria; all mappings go from the names of parameters.

    `graph` is the traced model, where there is one. Values of `inputs` are of the products that ran: each time a
    parameter is multiplied counts, in a module or in a function, and padding of convolutions does not.
    """

    model: nn.Module
    names: tuple[str, ...]
    data: Iterable[Batch] | None = None
    loss: Loss | None = None
    seed: int = 0
    graph: Graph | None = None
    _outs: dict[str, int] = field(default_factory=dict[str, int], repr=False)

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """Every parameter, detached."""
        named = dict(self.model.named_parameters())
        return {name: named[name].detach() for name in self.names if name in named}

    @cached_property
    def grads(self) -> Mapping[str, Tensor]:
        """Gradients of the loss, mean over the batches, of the shape of the parameter."""
        return self.mean(lambda g, _: g)

    @cached_property
    def fisher(self) -> Mapping[str, Tensor]:
        """The diagonal of the empirical Fisher matrix: squared gradients of the batches' losses, mean over them."""
        return self.mean(lambda g, _: g.square())

    def mean(self, of: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        """Mean over batches of `of(gradient, weight)`, for every parameter.

        Both are at least float32, for half precision would underflow in squares. A weight that the loss does not
        depend on has a gradient of zero.
        """
        total = {name: torch.zeros_like(wide(w)) for name, w in self.weights.items() if w.is_floating_point()}
        count = 0
        for found in self.gradients():
            for name, g in found.items():
                total[name] += of(g, wide(self.weights[name]))
            count += 1
        return {name: value / count for name, value in total.items()}

    def gradients(self) -> Iterator[Mapping[str, Tensor]]:
        """The gradients of each batch's loss, one batch after the other."""
        data, loss = self._needed("gradients")
        count = 0
        for found in gradients(self.model, self.names, data, loss):
            count += 1
            yield {name: wide(g.detach()) for name, (_, g) in found.items()}
        if count == 0:
            raise CriterionError("The data gave no batch; a criterion with gradients needs at least one.")

    def hessian_times(self, vector: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The Hessian of the mean loss times a vector that has the shapes of the parameters it names."""
        data, loss = self._needed("gradients")
        return hessian_times(self.model, data, loss, vector)

    @cached_property
    def flow(self) -> Mapping[str, Tensor]:
        """∂R/∂|w|: R is the sum of the results of the model with absolute weights and all inputs one, see `flow`."""
        return flow(self.model, self.graph)

    @cached_property
    def inputs(self) -> Mapping[str, Seen]:
        """What each weight that takes part in products reads: counts, means, squares, zeros."""
        return {name: read(table) for name, table in self._tables(moments).items()}

    @cached_property
    def input_norm(self) -> Mapping[str, Tensor]:
        """‖x_j‖₂ over samples and positions for each input j of a weight; broadcasts to the weight."""
        return {name: seen.squares.sqrt() for name, seen in self.inputs.items()}

    def over_inputs(self, of: OfInputs) -> Mapping[str, tuple[Sequence[Tensor], float]]:
        """Sums of your own: `of(x)`, x (samples, inputs, *positions) -> (inputs, k), added up over the data.

        For each weight k tables that broadcast to it, and their `spread`, see `Seen`.
        """
        return {name: (table.tables(), table.spread) for name, table in self._tables(of).items()}

    @cached_property
    def gram(self) -> Mapping[str, Tensor]:
        """X Xᵀ of the columns that a weight is multiplied by, (groups, size, size); size = inputs x kernel.

        Each is computed when it is asked for, with its neighbors, as many as fit into a gibibyte: ask in the order of
        the names. Every such set takes a pass over the data.
        """
        return Grams(self._shapes, self._watch)

    def rows(self, name: str) -> int | None:
        """The dimension of a weight along which its outputs run; None where no product has shown it."""
        return self._outs[name] if name in self._outs else self._shown.get(name)

    @cached_property
    def _shown(self) -> Mapping[str, int]:
        """The same from the example calls of the trace, or else from the data."""
        if self.graph is not None:
            watch(self.model, self.graph.examples, lambda model, e: model(*e.args, **e.kwargs), self._noted)
        elif self.data is not None and self.loss is not None:
            watch(self.model, self.data, self.loss, self._noted)
        return self._outs

    def _tables(self, of: OfInputs) -> Mapping[str, Table]:
        return tables(self._shapes, of, self._watch)

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(w.shape) for name, w in self.weights.items()}

    def _watch(self, see: See) -> None:
        data, loss = self._needed("activations")

        def noted(read: Read) -> None:
            self._noted(read)
            see(read)

        watch(self.model, data, loss, noted)

    def _noted(self, read: Read) -> None:
        if read.out is not None:
            self._outs.setdefault(read.part.name, read.out)

    def _needed(self, what: str) -> tuple[Iterable[Batch], Loss]:
        if self.data is None or self.loss is None:
            raise CriterionError(missing(what))
        return self.data, self.loss


def missing(what: str) -> str:
    """What to say where a criterion looks at the user's data, and there are none."""
    return (
        f"This criterion looks at {what}: pass data=batches and loss=loss, where loss(model, batch) is a scalar "
        "tensor, the mean over the batch."
    )
