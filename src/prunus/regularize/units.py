"""What each unit owns of the parameters, as one number a unit; and a factor a unit, spread back over what it owns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunus.errors import GroupError
from prunus.graph.groups import Groups
from prunus.graph.private import unwrap
from prunus.score import check_shapes
from prunus.types import wide


@dataclass(frozen=True, eq=False)
class Place:
    """The slices along `dim` of one parameter that the units of a group own; `index` is (units, k)."""

    group: str
    state: str
    dim: int
    index: Tensor


@dataclass(frozen=True, eq=False)
class Units:
    """Every place of every group; all results are in float32 or better.

    An element that units of two groups own (an output of one, an input of the other) counts for both.
    """

    places: tuple[Place, ...]
    sizes: Mapping[str, int]
    _known: dict[tuple[Place, torch.device], Tensor] = field(
        default_factory=dict[tuple[Place, torch.device], Tensor], repr=False
    )

    @property
    def states(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(place.state for place in self.places))

    def squares(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group -> the sum of squares of all that each unit owns, (units,); autograd runs through it."""
        slices: dict[tuple[str, int], Tensor] = {}
        found: dict[str, Tensor] = {}
        for place in self.places:
            key = place.state, place.dim
            if key not in slices:
                slices[key] = _along(wide(weights[place.state]).square(), place.dim)
            part = slices[key][self._index(place, slices[key].device)].sum(1)
            found[place.group] = found[place.group] + part if place.group in found else part
        return found

    def spread(
        self, weights: Mapping[str, Tensor], factors: Mapping[str, Tensor], states: Collection[str]
    ) -> dict[str, Tensor]:
        """State name -> the sum of the factors of the units that own an element, broadcastable to the weight."""
        rows: dict[tuple[str, int], Tensor] = {}
        for place in self.places:
            if place.state not in states:
                continue
            weight, factor = weights[place.state], factors[place.group]
            row = rows.setdefault((place.state, place.dim), factor.new_zeros(weight.shape[place.dim]))
            index = self._index(place, factor.device)
            row.index_put_((index,), factor[:, None].expand_as(index), accumulate=True)  # units may share a slice
        return _summed(rows, weights)

    def _index(self, place: Place, device: torch.device) -> Tensor:
        if (place, device) not in self._known:
            self._known[place, device] = place.index.to(device)
        return self._known[place, device]


def units_of(groups: Groups, who: str, states: Collection[str] | None = None) -> Units:
    """The places of channel groups, in `states` alone if given. Raises `GroupError` for units within tensors."""
    if groups.laid:
        raise GroupError(
            f"{who} pushes slices of whole axes, and {groups.pattern} lies within tensors. Use groups over Channel(), "
            "or prunus.regularize.l1."
        )
    check_some(groups, who)
    places = [
        Place(group.name, member.state, member.dim, groups.index(group, member))
        for group in groups
        for member in group.members
        if member.state in groups.graph.parameters and (states is None or member.state in states)
    ]
    return Units(tuple(places), {group.name: int(groups.left(group).sum()) for group in groups})


def check_some(groups: Groups, who: str) -> None:
    if not len(groups):
        raise GroupError(f"{who} was given no group to push; `only` and `skip` have left out every one.")


def fitting(model: nn.Module, groups: Groups) -> nn.Module:
    """The model without its wrappers, once it has the shapes of the groups."""
    model = unwrap(model)
    check_shapes(model, groups)
    return model


def norms(model: nn.Module, groups: Groups) -> dict[str, Tensor]:
    """Group -> the L2 norm of all that each unit owns of the parameters, (units,).

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
    >>> net[0].weight.data, net[2].weight.data = torch.tensor([[3.0], [0.0]]), torch.tensor([[4.0, 0.0]])
    >>> norms(net, prunus.group(prunus.trace(net, torch.ones(2, 1))))
    {'0': tensor([5., 0.])}
    """
    weights = {name: p.detach() for name, p in fitting(model, groups).named_parameters()}
    return {name: squares.sqrt() for name, squares in units_of(groups, "norms").squares(weights).items()}


def root(squares: Tensor) -> Tensor:
    """The square root, with derivative zero at zero, where it has none."""
    some = squares > 0
    return torch.where(some, squares, 1).sqrt() * some


def _along(tensor: Tensor, dim: int) -> Tensor:
    """Sums over every other dimension, (shape[dim],)."""
    others = [d for d in range(tensor.ndim) if d != dim]
    return tensor.sum(others) if others else tensor


def _summed(rows: Mapping[tuple[str, int], Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for (state, dim), row in rows.items():
        part = row.view([-1 if d == dim else 1 for d in range(weights[state].ndim)])
        found[state] = found[state] + part if state in found else part
    return found
