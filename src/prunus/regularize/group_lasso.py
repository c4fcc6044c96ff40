"""`group_lasso`: the norm of all that a unit owns, in every tensor coupled with it; weak units are pushed hardest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus import schedules
from prunus.errors import PlanError
from prunus.graph.groups import Groups
from prunus.regularize.push import Push
from prunus.regularize.units import Units, root, units_of
from prunus.schedules import Schedule
from prunus.types import wide


def group_lasso(
    groups: Groups,
    *,
    strength: float = 1e-3,
    contrast: float = 4.0,
    steps: int = 1,
    schedule: Schedule = schedules.linear,
) -> Push:
    """strength · Σ_k γ_k ‖w_k‖₂, where w_k is everything that unit k owns: what makes it, its norms, what reads it.

    With I_k = ‖w_k‖₂² and `contrast` α: γ_k = 2^(α (I_max - I_k) / (I_max - I_min)), largest and smallest of the group,
    so that the weakest unit is pushed 2^α times as hard as the strongest, which is pushed as hard as it says. γ is
    taken as a constant of each step. The gradient added is strength · γ_k w_k / ‖w_k‖₂, zero at zero. `contrast=0` is
    the group lasso of Yuan & Lin, without its weights for the sizes of groups.

    >>> import prunus
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> net[0].weight.data, net[2].weight.data = torch.tensor([[3.0], [0.6]]), torch.tensor([[4.0, 0.8]])
    >>> groups = prunus.group(prunus.trace(net, torch.ones(2, 1)))
    >>> group_lasso(groups, strength=1.0, contrast=1.0).penalty(net).item()  # 1 · 5 + 2 · 1
    7.0

    Raises `GroupError` when units lie within tensors.

    Source: Fang et al. 2023 (DepGraph), arXiv:2301.12900, section 3.3, which takes I and γ so, with α = 4, but pushes
    the squared norm γ_k ‖w_k‖₂²; the norm itself, as here, goes on pushing where little is left. Yuan & Lin 2006,
    doi:10.1111/j.1467-9868.2005.00532.x. Biases are pushed with the rest, since they keep dead units alive.
    """
    if not contrast >= 0:
        raise PlanError(f"group_lasso(contrast={contrast}): expected 0 (all alike) or more; the paper takes 4.")
    term = Norms(units_of(groups, "group_lasso"), contrast)
    return Push(groups, term, who="group_lasso", strength=strength, steps=steps, schedule=schedule)


@dataclass(frozen=True, eq=False)
class Norms:
    """Σ γ_k ‖w_k‖₂."""

    units: Units
    contrast: float

    @property
    def states(self) -> tuple[str, ...]:
        return self.units.states

    def value(self, weights: Mapping[str, Tensor]) -> Tensor:
        squares = self.units.squares(weights)
        return torch.stack([(self._contrasted(s.detach()) * root(s)).sum() for s in squares.values()]).sum()

    def gradient(self, weights: Mapping[str, Tensor], states: Collection[str]) -> dict[str, Tensor]:
        squares = self.units.squares(weights)
        factors = {g: torch.where(s > 0, self._contrasted(s) * s.rsqrt(), 0) for g, s in squares.items()}
        spread = self.units.spread(weights, factors, states)
        return {name: wide(weights[name]) * factor for name, factor in spread.items()}

    def _contrasted(self, squares: Tensor) -> Tensor:
        """γ of each unit."""
        most, least = squares.max(), squares.min()
        below = torch.where(most > least, (most - squares) / (most - least), 0)
        return torch.exp2(self.contrast * below)
