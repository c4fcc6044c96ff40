"""Gates in the forward pass: every weight that reads a group is read times the gates of its units, until folded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from prunus.errors import GroupError
from prunus.graph.groups import Group, Groups
from prunus.regularize.hard_concrete import drawn, settled
from prunus.regularize.units import check_some


class Gates:
    """The gates of one group: for training by noise that is drawn again and again, for evaluation settled."""

    def __init__(self, size: int, level: float) -> None:
        self.log_alpha = nn.Parameter(torch.full((size,), level))
        self.noise = torch.full((size,), 0.5)

    def to(self, device: torch.device) -> None:
        self.log_alpha.data, self.noise = self.log_alpha.data.to(device), self.noise.to(device)

    def redraw(self, draw: torch.Generator | None = None) -> None:
        """Draw noise for the pass that comes."""
        noise = torch.rand_like(self.noise) if draw is None else torch.rand(self.noise.shape, generator=draw)
        self.noise = noise.to(self.noise.device).clamp(1e-6, 1 - 1e-6)

    def values(self, training: bool) -> Tensor:
        return drawn(self.log_alpha, self.noise) if training else settled(self.log_alpha)


@dataclass(frozen=True, eq=False)
class Reader:
    """A weight that reads the units of a group along `dim`; `unit` says which each slice reads, from 1, and 0 none."""

    owner: nn.Module
    name: str
    gates: Gates
    unit: Tensor
    dim: int

    def factor(self, weight: Tensor, training: bool) -> Tensor:
        """The gates, broadcastable to the weight."""
        gates = self.gates.values(training)
        each = torch.cat([gates.new_ones(1), gates])[self.unit].to(weight.dtype)
        return each.view([-1 if d == self.dim else 1 for d in range(weight.ndim)])


def check_gateable(groups: Groups) -> None:
    """Raise `GroupError` where gates on what reads a unit are not gates on the unit."""
    if groups.laid:
        raise GroupError(f"L0 gates units of whole axes, and {groups.pattern} lies within tensors. Use Channel().")
    check_some(groups, "L0")
    for group in groups:
        why = _refusal(groups, group)
        if why:
            raise GroupError(f"L0 cannot gate group {group.name!r}: {why}. Leave it out: groups.skip({group.name!r}).")


def _refusal(groups: Groups, group: Group) -> str:
    states = [m.state for m in group.members if m.consumer and m.state in groups.graph.parameters]
    tied = next((name for name in states if name in groups.graph.aliases.values()), None)
    if not states:
        return "no weight reads it"
    if group.kind == "head_dim":
        return "products of activations add it up before a weight reads it"
    return f"{tied!r}, which reads it, is tied to another weight" if tied else ""


def readers(model: nn.Module, groups: Groups, gates: Mapping[str, Gates]) -> list[Reader]:
    """Every weight that reads units of these groups. Raises `GroupError` for those of recurrent layers."""
    return [each for group in groups for each in _readers(model, groups, group, gates[group.name])]


def _readers(model: nn.Module, groups: Groups, group: Group, gates: Gates) -> Iterator[Reader]:
    for member in group.members:
        if member.consumer and member.state in groups.graph.parameters:
            path, _, name = member.state.rpartition(".")
            owner = model.get_submodule(path)
            if isinstance(owner, nn.RNNBase):
                raise GroupError(
                    f"L0 cannot gate group {group.name!r}: {member.state!r}, which reads it, is packed away by its "
                    f"{type(owner).__name__}. Leave it out: groups.skip({group.name!r})."
                )
            weight, index = _held(owner, name), groups.index(group, member)
            gates.to(weight.device)
            unit = torch.zeros(weight.shape[member.dim], dtype=torch.long)
            unit[index] = torch.arange(1, index.shape[0] + 1)[:, None]
            yield Reader(owner, name, gates, unit.to(weight.device), member.dim)


def gate(found: Iterable[Reader]) -> None:
    """Let each of these weights be read times its gates, in place, until `fold`.

    A module gets a subclass of its class in which the weight is a property. The parameter stays where it is, so that
    state dict, optimizer and the hooks of a data-parallel wrapper know nothing of it.
    """
    for owner, names in _by_owner(found).items():
        kind = type(owner)
        vars(owner)["_gated"] = names
        owner.__class__ = type(f"Gated{kind.__name__}", (kind,), {name: property(_reading(name)) for name in names})


def fold(found: Iterable[Reader]) -> None:
    """Leave the weights multiplied by the settled gates, and the modules as they were."""
    for owner, names in _by_owner(found).items():
        owner.__class__ = type(owner).__bases__[0]
        del vars(owner)["_gated"]
        for name, each in names.items():
            weight = _held(owner, name)
            with torch.no_grad():
                for reader in each:
                    weight.mul_(reader.factor(weight, training=False))


Gated: TypeAlias = "dict[str, list[Reader]]"
"""Name of a weight -> what reads by it."""


def _by_owner(found: Iterable[Reader]) -> dict[nn.Module, Gated]:
    owners: dict[nn.Module, Gated] = {}
    for reader in found:
        owners.setdefault(reader.owner, {}).setdefault(reader.name, []).append(reader)
    return owners


def _reading(name: str) -> Callable[[nn.Module], Tensor]:
    def read(module: nn.Module) -> Tensor:
        weight = _held(module, name)
        for reader in module.__dict__["_gated"][name]:
            weight = weight * reader.factor(weight, module.training)
        return weight

    return read


def _held(module: nn.Module, name: str) -> Tensor:
    """The parameter itself."""
    return module.__dict__["_parameters"][name]
