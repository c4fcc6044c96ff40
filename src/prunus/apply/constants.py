"""What removed units add where they are read: nothing, a constant that a bias can take, or more than that.

The model runs as it is, and each operation that reads removed units once more without them, as it will without verify.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus.apply.homes import Home, Homes
from prunus.apply.precision import ACCEPTED, Precision
from prunus.graph.fit import fit, fit_constants, lifted, without_draws
from prunus.graph.groups import Group
from prunus.graph.interpret import Outside, execute, operate
from prunus.graph.nest import input_tensors
from prunus.graph.node import Node
from prunus.graph.reference import Reference
from prunus.graph.width import mask_of
from prunus.plan import Plan
from prunus.types import Inputs

_MOVES = "they are not constant: what they add depends on the input"
_VARIES = "what they add differs from position to position, most likely at the border, where zero padding hides them"
_HOMELESS = "it has no bias, and no batch norm in eval mode (or added parameter) is all that reads its result"
_CHANGES = "what it computes changes with them by more than an added constant"
_SHARED = "its bias is used by other operations too, which need another constant"


@dataclass(frozen=True, eq=False)
class Moved:
    """A constant, of the shape of the state at `home`, that goes there."""

    home: Home
    amount: Tensor


@dataclass(frozen=True, eq=False)
class Refused:
    """Removed units whose constant has no place, where they are read."""

    node: Node
    groups: tuple[Group, ...]
    units: int
    reason: str

    def __str__(self) -> str:
        where = repr(self.node.module or self.node.op)
        names = ", ".join(repr(g.name) for g in self.groups)
        return f"{where} reads {self.units} removed units of {names}: {self.reason}"


class Constants:
    """Runs the whole model, and finds at each operation what becomes of the constants of the units that go.

    The run goes on without a constant that has no place; `undropped` are those of groups that `drops` does not say.
    """

    def __init__(self, plan: Plan, state: Mapping[str, Tensor], drops: Callable[[Group], bool]) -> None:
        self.plan, self.graph, self.state, self.drops = plan, plan.graph, state, drops
        self.inferred = plan.graph.eval.inferred
        self.alive, self.keep = plan.groups.alive, plan.left
        self.program = without_draws(lifted(fit(self.graph, self.graph.eval, self.alive)))
        self.reference = Reference(self.graph.eval, self.keep, self.alive)
        self.homes = Homes(self.program)
        self.moved: dict[str, Moved] = {}
        self.refused: dict[str, Refused] = {}

    def find(self, examples: list[Inputs]) -> list[list[Tensor]]:
        """The results for each example, in float64, without the constants that have no place."""
        known = len(self.refused)
        self.moved.clear()
        results = [self._run(example) for example in examples]
        self._refuse_shared()
        if len(self.refused) == known:
            return results
        return self.find(examples)  # where one more is lost, what comes after it is another constant

    def _run(self, example: Inputs) -> list[Tensor]:
        wide = Precision()
        constants = {name: wide.value(t) for name, t in fit_constants(self.graph, self.alive).items()}
        outside = Outside(wide.state(self.state), constants, input_tensors(wide.inputs(example)))
        with torch.no_grad():
            return execute(self.program, outside, self)

    def __call__(self, node: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if node.name not in self.reference.masks or node.name not in self.inferred.live:
            return operate(node, args, kwargs)
        rest = self.reference(node, args, kwargs)
        whole = operate(node, args, kwargs)
        if node.name not in self.refused and (reason := self._judge(node, whole, rest)):
            self._refuse(node, reason)
        return rest if node.name in self.refused else whole

    def _judge(self, node: Node, whole: Any, rest: Any) -> str:
        """Note the constant that moves from this operation; or why it cannot."""
        if not isinstance(whole, Tensor) or not whole.dtype.is_floating_point:
            return "" if _equal(whole, rest) else _CHANGES
        amount = self._where_kept(node, torch.where(whole == rest, 0.0, whole - rest))
        close = ACCEPTED * max(float(whole.abs().max()), float(rest.abs().max()))
        before = self.moved.get(node.name)
        if before is None and float(amount.abs().max()) <= close:
            return ""
        home = self.homes.of(node)
        part = None if home is None else home.part(amount, self.state[home.state])
        if home is None or part is None or float((amount - home.beside(part)).abs().max()) > close:
            moves = amount.ndim > 1 and float((amount - amount[:1]).abs().max()) > close
            return _MOVES if moves else _HOMELESS if home is None else _VARIES
        if before is not None and float((before.amount - part).abs().max()) > close:
            return _MOVES
        self.moved.setdefault(node.name, Moved(home, part))
        return ""

    def _where_kept(self, node: Node, amount: Tensor) -> Tensor:
        """Zero for the results that are removed themselves."""
        for dim, axis in enumerate(self.inferred.of(node.name)):
            stays = mask_of(axis, self.keep)[mask_of(axis, self.alive)]
            if stays.numel() == amount.shape[dim] and not bool(stays.all()):
                amount = amount.index_fill(dim, (~stays).nonzero().flatten().to(amount.device), 0.0)
        return amount

    def _refuse_shared(self) -> None:
        """State that more than one operation adds can take a constant only if all of them need the same."""
        adders = {moved.home.adder: moved for moved in self.moved.values()}
        for name, moved in list(self.moved.items()):
            others = [adders.get(node.name) for node in self.homes.shared(moved.home)]
            if not all(other and torch.allclose(other.amount, moved.amount, ACCEPTED, ACCEPTED) for other in others):
                self._refuse(self.homes.nodes[name], _SHARED)

    def _refuse(self, node: Node, reason: str) -> None:
        groups = self._groups(node)
        units = sum(int((self.plan.groups.left(g) & ~self.keep[g.leaf]).sum()) for g in groups)
        self.refused[node.name] = Refused(node, groups, units, reason)

    def _groups(self, node: Node) -> tuple[Group, ...]:
        """The groups of which it reads units that go."""
        read = {leaf for r in self.inferred.notes[node.name].reads for leaf in r.over.leaves()}
        every = [g for g in self.plan.groups.every if g.leaf in read and g.leaf in self.keep]
        return tuple(g for g in every if bool((self.plan.groups.left(g) & ~self.keep[g.leaf]).any()))

    @property
    def undropped(self) -> list[Refused]:
        return [refused for refused in self.refused.values() if not all(map(self.drops, refused.groups))]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return all(map(_equal, a, b)) if isinstance(a, list | tuple) else a == b
