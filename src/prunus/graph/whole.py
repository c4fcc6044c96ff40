"""Means that go on dividing by as many units as the traced model had, so that removing units is zeroing them.

A mean over k of d units is scaled by k/d. In a root mean square, w · x · rsqrt(mean(x²) + eps), that is the same as eps
· d/k and w · sqrt(d/k): so the user's own class can compute it, by a number it holds and a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prunus.graph.node import Node, Ref
from prunus.graph.program import Program

_CASTS = frozenset(("to", "_to_copy", "type_as"))


@dataclass(frozen=True)
class Fold:
    """A root mean square: the operation of its mean, the one that takes its eps (as `arg`), and its weight."""

    mean: str
    eps: str
    arg: str
    weight: str


@dataclass(frozen=True, eq=False)
class Whole:
    """The operations of one program that go on dividing by the whole count, and the root mean squares among them."""

    nodes: frozenset[str] = frozenset()
    folds: tuple[Fold, ...] = ()


def whole_means(programs: Sequence[Program]) -> list[Whole]:
    """For each program of one model; a weight must fold in all of them, for they share it."""
    found = [list(_Wiring(program).folds()) for program in programs]
    shared = set[str].intersection(*({fold.weight for fold in folds} for folds in found))
    made: list[Whole] = []
    for program, folds in zip(programs, found, strict=True):
        kept = tuple(fold for fold in folds if fold.weight in shared)
        means = {node.name for node in program.nodes if node.plain == "mean"}
        made.append(Whole(frozenset(means | {fold.mean for fold in kept}), kept))
    return made


class _Wiring:
    def __init__(self, program: Program) -> None:
        self.nodes, self.readers = program.named, program.readers
        self.outputs = set(program.outputs)

    def folds(self) -> Iterator[Fold]:
        for node in self.nodes.values():
            bound = node.bound()
            if node.plain == "rms_norm" and bound["eps"] is not None:
                weight = self._weight([bound["weight"]])
                yield from [Fold(node.name, node.name, "eps", weight)] if weight else ()
            elif node.plain == "mean":
                yield from self._written_out(node)

    def _written_out(self, mean: Node) -> Iterator[Fold]:
        """mean -> + eps -> rsqrt -> times x -> casts -> times a weight, each read by the next alone."""
        eps = self._reader(mean, "add")
        root = self._reader(eps, "rsqrt")
        product = self._reader(root, "mul")
        while (cast := self._reader(product, *_CASTS)) is not None:
            product = cast
        scaled = self._reader(product, "mul")
        weight = self._weight(list(scaled.args)) if scaled else None
        number = eps.bound().get("other") if eps else None
        if eps and weight and type(number) is float and eps.bound().get("alpha") == 1:
            yield Fold(mean.name, eps.name, "other", weight)

    def _reader(self, node: Node | None, *names: str) -> Node | None:
        """What alone reads a value, if it is one of these operations."""
        readers = self.readers.get(node.name, []) if node and node.name not in self.outputs else []
        return readers[0] if len(readers) == 1 and readers[0].plain in names else None

    def _weight(self, values: Sequence[object]) -> str | None:
        """The one among these values that is state which nothing else reads, by its name."""
        for value in values:
            source = self.nodes[value.name] if isinstance(value, Ref) else None
            if source and source.op == "state" and len(self.readers[source.name]) == 1:
                return source.args[0]
        return None
