"""`l1`: the sum of absolute weights, over all that the units own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus import schedules
from prunus.graph.groups import Groups
from prunus.regularize.push import Push
from prunus.regularize.units import Units, check_some, units_of
from prunus.schedules import Schedule
from prunus.types import wide


def l1(groups: Groups, *, strength: float = 1e-4, steps: int = 1, schedule: Schedule = schedules.linear) -> Push:
    """strength · Σ |w|, over every parameter that a unit of `groups` owns, each element once.

    The gradient added is strength · sign(w), zero at zero. Over groups of elements, blocks or N:M cells it is about the
    weights they lie in; over channels about all that they own, biases and norms included. Each element is pushed by
    itself; `group_lasso` pushes what a unit owns together.

    >>> from prunus import Element, group
    >>> net = torch.nn.Linear(3, 1, bias=False)
    >>> net.weight.data = torch.tensor([[1.0, -2.0, 0.0]])
    >>> push = l1(group(net, pattern=Element()), strength=0.1)
    >>> round(push.penalty(net).item(), 4)
    0.3
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    >>> with push.attach(net, optimizer):
    ...     net(torch.zeros(1, 3)).sum().backward()
    ...     optimizer.step()
    >>> net.weight.data
    tensor([[ 0.9000, -1.9000,  0.0000]])

    Source: Tibshirani 1996, equation 1 in the form of Lagrange; for networks Han et al. 2015, section 3.1.
    """
    check_some(groups, "l1")
    term = Within(_left(groups)) if groups.laid else Absolute(units_of(groups, "l1"))
    return Push(groups, term, who="l1", strength=strength, steps=steps, schedule=schedule)


@dataclass(frozen=True, eq=False)
class Absolute:
    """Σ |w| over what the units of channel groups own, each element once."""

    units: Units
    _known: dict[tuple[str, torch.device], Tensor] = field(
        default_factory=dict[tuple[str, torch.device], Tensor], repr=False
    )

    @property
    def states(self) -> tuple[str, ...]:
        return self.units.states

    def value(self, weights: Mapping[str, Tensor]) -> Tensor:
        parts = [(wide(weights[n]).abs() * self._owned(weights, n)).sum() for n in self.states]
        return torch.stack(parts).sum()

    def gradient(self, weights: Mapping[str, Tensor], states: Collection[str]) -> dict[str, Tensor]:
        return {name: weights[name].sign() * self._owned(weights, name) for name in states}

    def _owned(self, weights: Mapping[str, Tensor], name: str) -> Tensor:
        """Which elements belong to a unit, broadcastable to the weight."""
        device = weights[name].device
        if (name, device) not in self._known:
            ones = {group: torch.ones(size, device=device) for group, size in self.units.sizes.items()}
            self._known[name, device] = self.units.spread(weights, ones, [name])[name] > 0
        return self._known[name, device]


@dataclass(frozen=True, eq=False)
class Within:
    """Σ |w| over the units left of patterns within tensors; `left` is None where all are."""

    left: Mapping[str, Tensor | None]

    @property
    def states(self) -> tuple[str, ...]:
        return tuple(self.left)

    def value(self, weights: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self._kept(wide(weights[n]).abs(), n).sum() for n in self.states]).sum()

    def gradient(self, weights: Mapping[str, Tensor], states: Collection[str]) -> dict[str, Tensor]:
        return {name: self._kept(weights[name].sign(), name) for name in states}

    def _kept(self, tensor: Tensor, name: str) -> Tensor:
        left = self.left[name]
        return tensor if left is None else tensor * left.to(tensor.device)


def _left(groups: Groups) -> dict[str, Tensor | None]:
    return {
        group.name: group.grid.spread(groups.left(group)) if group.leaf in groups.alive else None
        for group in groups
        if group.grid is not None
    }
