"""`L0`: a gate a unit that learns whether to close, by hard-concrete noise and the expected share that stays open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim.optimizer import Optimizer

from prunus import schedules
from prunus.errors import PlanError
from prunus.graph.groups import Groups
from prunus.graph.shards import check_whole
from prunus.regularize.gates import Gates, Reader, check_gateable, fold, gate, readers
from prunus.regularize.hard_concrete import level_of, open_chance, open_slope
from prunus.regularize.push import check_strength, progressed
from prunus.regularize.ride import Ride, add_gradients, ride, trained, weights_of
from prunus.regularize.units import fitting, units_of
from prunus.schedules import Schedule
from prunus.score import Scores


class L0:
    """strength · Σ_k s_k P(z_k ≠ 0), where every weight that reads unit k is multiplied by its gate z_k in [0, 1].

    s_k is the share of the prunable parameters that unit k owns, so that the term lies between 0 and `strength`. A gate
    acts where a unit is read, behind norms and activations: one at zero is the unit removed. In training mode gates are
    drawn once a forward pass of the model that was attached, and after each optimizer step by `seed` and step, for
    loops that call a part of that model; in evaluation they are settled. All start alike at sigmoid(log α) = `start`;
    from 0.92 on they are settled at one, so that evaluation is not changed by attaching.

    While it is attached the model's state dict has the names and the ungated weights it always had; the gates are in
    `state_dict()` of this and in a param group of the first optimizer, so that a resumed run attaches first and loads
    then: in loops of your own, for trainers of frameworks take no group that comes later. A deep copy has the gates of
    its time. Move the model to its device before attaching. `detach()` folds the settled gates into the weights, which
    stay the same parameters: the model evaluates as before it.
    Then `allocate(groups, l0.scores(), budget)` says what goes.

    Raises `GroupError` for units whose gates would not be the unit's: within tensors, read by no weight, by a tied one
    or by a recurrent layer, or added up in products of activations (`head_dim`).

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> groups = prunus.group(prunus.trace(net, torch.randn(2, 4)))
    >>> l0, optimizer = L0(groups, strength=0.1, lr=0.05), torch.optim.Adam(net.parameters())
    >>> with l0.attach(net, optimizer):
    ...     net(torch.ones(1, 4)).square().sum().backward()
    ...     optimizer.step()
    >>> l0.scores()["0"].shape, sorted(net.state_dict())
    (torch.Size([8]), ['0.bias', '0.weight', '2.bias', '2.weight'])

    Source: Louizos et al. 2018, arXiv:1712.01312, equations 10 to 13; there gates are on weights that make units.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        strength: float = 1.0,
        lr: float | None = None,
        start: float = 0.95,
        steps: int = 1,
        schedule: Schedule = schedules.linear,
        seed: int = 0,
    ) -> None:
        check_strength("L0", strength, steps)
        if not 0 < start < 1:
            raise PlanError(f"L0(start={start}): expected a chance between 0 and 1, neither of them.")
        check_gateable(groups)
        self.groups, self.strength, self.lr, self.start = groups, strength, lr, start
        self.steps, self.schedule, self.seed = steps, schedule, seed
        self.step = 0
        level = level_of(start)
        self._gates = {g.name: Gates(int(groups.left(g).sum()), level) for g in groups}
        self._shares: dict[str, Tensor] = {}
        self._ride: Ride | None = None
        self._folded = False

    def penalty(self, model: nn.Module | None = None) -> Tensor:  # noqa: ARG002 - the same call for every regularizer
        """The value of the term in the coming step; it is about the gates alone. Raises `PlanError` before `attach`."""
        if not self._shares:
            raise PlanError("L0.penalty() needs the gates of a model; attach it first.")
        parts = [(self._share(name) * open_chance(gates.log_alpha)).sum() for name, gates in self._gates.items()]
        return self._now() * torch.stack(parts).sum()

    def scores(self) -> Scores:
        """Group name -> the chance that each unit's gate is open, for `allocate`."""
        return {name: open_chance(gates.log_alpha.detach()).cpu() for name, gates in self._gates.items()}

    def attach(self, model: nn.Module, *optimizers: Optimizer) -> Ride:
        """Gate the model, and let the first optimizer train the gates: a param group of their own, without decay.

        `lr` is the learning rate of that group, by default the optimizer's own. Attach before a learning-rate scheduler
        is made, which would not know of the group. In a `torch.distributed` run the gradients of gates are averaged.

        Raises `PlanError` when the gates were folded already, without an optimizer, or when the shapes differ.
        """
        if self._folded or self._ride is not None:
            raise PlanError("This L0 was attached before; its gates belong to that model. Make a new one.")
        inner = fitting(model, self.groups)
        check_whole(inner, "L0")
        found = readers(inner, self.groups, self._gates)
        made = ride(optimizers, "L0", self._add, self._count)
        self._shares = shares(inner, self.groups)
        gate(found)
        drawing = inner.register_forward_pre_hook(lambda module, _: self._redraw(module))
        self._join(optimizers[0])
        made.at_its_end(lambda: self._fold(found))
        made.at_its_end(lambda: self._leave(optimizers[0]))
        made.at_its_end(drawing.remove)
        self._draw_for_step()
        self._ride = made
        return made

    def state_dict(self) -> dict[str, Any]:
        """Where this stands: {"step": int, "log_alpha": group name -> (units,)}."""
        gates = {name: gates.log_alpha.detach().clone() for name, gates in self._gates.items()}
        return {"step": self.step, "log_alpha": gates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step = int(state["step"])
        with torch.no_grad():
            for name, gates in self._gates.items():
                gates.log_alpha.copy_(state["log_alpha"][name])
        self._draw_for_step()

    def _now(self) -> float:
        return self.strength * progressed(self.schedule, self.step, self.steps)

    def _count(self) -> None:
        self.step += 1
        self._draw_for_step()

    def _share(self, name: str) -> Tensor:
        return self._shares[name].to(self._gates[name].log_alpha.device)

    def _redraw(self, model: nn.Module) -> None:
        if model.training:
            for gates in self._gates.values():
                gates.redraw()

    def _draw_for_step(self) -> None:
        """Noise of this step and rank, so that a run that goes on draws the same."""
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        draw = torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) * 1_009 + rank)
        for gates in self._gates.values():
            gates.redraw(draw)

    def _join(self, optimizer: Optimizer) -> None:
        rate = {} if self.lr is None else {"lr": self.lr}
        gates = [gates.log_alpha for gates in self._gates.values()]
        optimizer.add_param_group({"params": gates, "weight_decay": 0.0, **rate})

    def _leave(self, optimizer: Optimizer) -> None:
        """Take the gates out of the optimizer again, with what it keeps of them."""
        own = {id(gates.log_alpha) for gates in self._gates.values()}
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if not any(id(p) in own for p in g["params"])]
        for gates in self._gates.values():
            optimizer.state.pop(gates.log_alpha, None)

    def _fold(self, found: Sequence[Reader]) -> None:
        fold(found)
        self._folded, self._ride = True, None

    @torch.no_grad()
    def _add(self, optimizer: Optimizer) -> None:
        gates = {name: each.log_alpha for name, each in self._gates.items()}
        own = trained(optimizer, gates)
        for name in own:
            _average(gates[name].grad)
        slopes = {name: self._now() * self._share(name) * open_slope(gates[name]) for name in own}
        add_gradients(optimizer, gates, slopes)


def _average(gradient: Tensor | None) -> None:
    """Over ranks: each draws gates of its own, and a wrapper that was there before knows nothing of them."""
    if gradient is not None and distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(gradient)
        gradient.div_(distributed.get_world_size())


def shares(model: nn.Module, groups: Groups) -> dict[str, Tensor]:
    """Group -> the share of all that the groups' units own that each unit owns, (units,); they sum to 1."""
    ones = {name: torch.ones_like(p) for name, p in weights_of(model).items()}
    owned = units_of(groups, "L0").squares(ones)
    total = sum(float(counts.sum()) for counts in owned.values())
    return {name: counts / total for name, counts in owned.items()}
