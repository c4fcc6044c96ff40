"""Where a constant can go that is added to the result of an operation: the state that is added to it anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prunus.graph.node import Node, Ref
from prunus.graph.program import Program

_CONVOLUTIONS = frozenset(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))
_ADDING = frozenset(("addmm", "addmv", "baddbmm"))


@dataclass(frozen=True)
class Home:
    """A state tensor, the operation that adds it (or subtracts it, `sign` -1), and how many dimensions of the result
    come after its own."""

    state: str
    adder: str
    trailing: int
    sign: int

    def part(self, amount: Tensor, state: Tensor) -> Tensor:
        """The part of an amount, of the result's shape, that the state can hold: the first along all else."""
        beside = self.beside(state).shape
        for dim, size in enumerate((*[1] * (amount.ndim - len(beside)), *beside)):
            amount = amount.narrow(dim, 0, 1) if size == 1 else amount
        return amount.reshape(state.shape)

    def beside(self, state: Tensor) -> Tensor:
        """The state, shaped so that it broadcasts with the result."""
        return state.reshape(*state.shape, *[1] * self.trailing)


class Homes:
    """The homes of a program's results: the bias of an operation, else what alone reads its result."""

    def __init__(self, program: Program) -> None:
        self.nodes, self.readers = program.named, program.readers
        self.outputs = set(program.outputs)

    def of(self, node: Node) -> Home | None:
        own = self._own(node, node.bound())
        if own is not None or node.name in self.outputs:
            return own
        readers = self.readers.get(node.name, [])
        return self._at(readers[0], node) if len(readers) == 1 else None

    def shared(self, home: Home) -> list[Node]:
        """The other operations that read the same state."""
        source = next(n.name for n in self.nodes.values() if n.op == "state" and n.args[0] == home.state)
        return [node for node in self.readers[source] if node.name != home.adder]

    def _own(self, node: Node, bound: Mapping[str, Any]) -> Home | None:
        name = node.plain
        if name in _CONVOLUTIONS:
            return self._home(node, node, bound["bias"], trailing=len(self._shape(bound["weight"])) - 2)
        if name == "linear":
            return self._home(node, node, bound["bias"])
        return self._home(node, node, bound["self"]) if name in _ADDING and bound["beta"] == 1 else None

    def _at(self, reader: Node, node: Node) -> Home | None:
        name, bound = reader.plain, reader.bound()
        if name == "batch_norm" and not bound["training"] and bound["input"] == Ref(node.name):
            trailing = len(self._shape(bound["input"])) - 2
            return self._home(reader, node, bound["running_mean"], trailing=trailing, sign=-1)
        if name != "add" or bound["alpha"] != 1:
            return None
        return self._home(reader, node, bound["other"] if bound["self"] == Ref(node.name) else bound["self"])

    def _home(self, adder: Node, node: Node, value: Any, *, trailing: int = 0, sign: int = 1) -> Home | None:
        """`value` as the home, where it is state that fits beside the node's result, `trailing` dimensions from its
        end."""
        source = self.nodes[value.name] if isinstance(value, Ref) else None
        if source is None or source.op != "state" or not source.meta.dtype.is_floating_point:
            return None
        beside, result = (*source.meta.shape, *[1] * trailing), node.meta.shape
        pairs = zip(reversed(beside), reversed(result), strict=False)
        if len(beside) > len(result) or any(a not in (1, b) for a, b in pairs):
            return None
        return Home(source.args[0], adder.name, trailing, sign)

    def _shape(self, value: Ref) -> tuple[int, ...]:
        return self.nodes[value.name].meta.shape
