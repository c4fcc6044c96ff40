"""`Regrow`: sparse from the first step to the last; weights go where they are small and grow where they are needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from prunus import densities
from prunus.allocate import allocate
from prunus.apply.mask import Mask, bits_of, mask, with_bits
from prunus.apply.ranks import agreed
from prunus.densities import Densities
from prunus.errors import GroupError, PlanError
from prunus.graph.grid import Grid
from prunus.graph.groups import Groups
from prunus.graph.private import unwrap
from prunus.graph.shards import check_whole
from prunus.patterns import Block, Element
from prunus.plan import Plan
from prunus.steps import after_step, before_step, check_trains
from prunus.types import Budget

Grow: TypeAlias = Literal["gradient", "random"]


class Regrow:
    """Train with few weights all along: every `every` steps some of each layer's go, and as many others grow.

    At step t a share drop/2 (1 + cos(pi t / (until steps))) of the units that each weight has goes, the smallest by
    |w|, and as many grow among all that then are out: those with the largest |gradient| (`grow="gradient"`, RigL), or
    at random (`grow="random"`, SET). What grows starts at zero, with moments of the optimizer at zero; what would both
    go and grow stays as it is. After `until` of the steps the places stay. Each weight always has as many units.

    `start` is a budget, of which places are drawn at random at the densities that `densities` says, or a plan over
    these groups. `Element` and `Block` only (of a block the sums count); weights should be untrained, and biases and
    norms stay dense.

    The gradient is the one that the optimizer is about to use: summed over accumulated batches, averaged over
    processes by DDP, at whatever scale a loss scaler left it, for only the order within a weight counts. So do not
    clear it before (`Mask.clear_grads`), and let the optimizer get its gradients before `step()`, not from a closure.
    Weights that have no gradient at that step stay as they are. All processes follow rank 0; random growth depends on
    `seed` and the step alone.

    Raises `GroupError` for other patterns, `PlanError` for counts and shares out of range, and what `allocate` raises.

    >>> from prunus import Budget, Element, group
    >>> net = nn.Linear(8, 8)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> regrow = Regrow(group(net, pattern=Element()), Budget("units", at_most=0.25), steps=10, every=2)
    >>> with regrow.attach(net, optimizer):
    ...     for _ in range(10):
    ...         net(torch.randn(4, 8)).square().sum().backward()
    ...         optimizer.step()
    >>> int((net.weight != 0).sum())
    16

    Source: Evci et al. 2020, arXiv:1911.11134, section 3 and algorithm 1; there the step at which places change takes
    no step of the optimizer, here it does. SET: Mocanu et al. 2018, arXiv:1707.04780, drops the smallest positive and
    the largest negative weights, a constant share after each epoch; here both are dropped by |w|, a share that falls.
    """

    def __init__(
        self,
        groups: Groups,
        start: Budget | Plan,
        *,
        steps: int,
        every: int = 100,
        until: float = 0.75,
        drop: float = 0.3,
        grow: Grow = "gradient",
        densities: Densities = densities.erk,
        seed: int = 0,
    ) -> None:
        _check(groups, steps, every, until, drop, grow)
        self.groups, self.steps, self.every, self.until = groups, steps, every, until
        self.drop, self.seed = drop, seed
        self.grow: Grow = grow
        self.step = 0
        self.plan = _drawn(groups, start, densities, seed) if isinstance(start, Budget) else _own(groups, start)
        made = {"grow": grow, "steps": steps, "every": every, "until": until, "drop": drop, "seed": seed}
        self.plan = replace(self.plan, provenance={**self.plan.provenance, **made})
        self._masks: Mask | None = None

    def attach(self, model: nn.Module, *optimizers: Optimizer) -> Mask:
        """Set the zeros, count the steps of the first optimizer, and hold the zeros after the steps of each.

        Until `detach()`; an earlier hold ends. In a `torch.distributed` run all processes attach together. Give every
        optimizer that trains one of the weights: it is in theirs that moments are cleared.
        """
        if not optimizers:
            raise PlanError(
                "Regrow.attach(model) was given no optimizer to count the steps of; expected attach(model, optimizer)."
            )
        check_whole(unwrap(model), "Regrow")
        for optimizer in optimizers:
            check_trains(optimizer, model, "Regrow")
        if self._masks is not None:
            self._masks.detach()
        self.plan = agreed(self.plan)
        self._masks = mask(model, self.plan, *optimizers)
        self._masks.until_detached(before_step(optimizers[0], lambda _: self._change(model, optimizers)))
        self._masks.until_detached(after_step(optimizers[0], self._count))
        return self._masks

    def state_dict(self) -> dict[str, Any]:
        """Where this stands, for checkpoints: {"step": int, "kept": group name -> packed bits}."""
        return {"step": self.step, "kept": bits_of(self.plan)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Load model, optimizer and this: all before `attach`, or all after it."""
        self.plan = with_bits(self.plan, state["kept"])
        self.step = int(state["step"])
        if self._masks is not None:
            self._masks.update(self.plan)

    def _count(self, _: Optimizer) -> None:
        self.step += 1

    def _change(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Before a step of the optimizer: the gradients are there, and zeros have theirs too."""
        if self.step == 0 or self.step % self.every or self.step >= self.until * self.steps:
            return
        check_trains(optimizers[0], model, "Regrow")
        share = self.drop / 2 * (1 + math.cos(math.pi * self.step / (self.until * self.steps)))
        before = self.plan
        self.plan = agreed(replace(before, keep=self._moved(unwrap(model), share)))
        for name, grid, weight in _weights(self.groups, unwrap(model)):
            grown = self.plan.keep[name] & ~before.keep[name]
            _clear_moments(weight, grid.spread(grown.to(weight.device)), optimizers)
        assert self._masks is not None
        self._masks.update(self.plan)

    def _moved(self, model: nn.Module, share: float) -> dict[str, Tensor]:
        """Each keep vector with a share of its units elsewhere."""
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        keep = dict(self.plan.keep)
        for name, grid, weight in _weights(self.groups, model):
            wanted = self._wanted(grid, weight, draw)
            if wanted is not None:
                sizes = grid.cells(weight.detach()).abs().sum(1).float()
                keep[name] = _exchanged(keep[name].to(sizes.device), sizes, wanted, share).cpu()
        return keep

    def _wanted(self, grid: Grid, weight: Tensor, draw: torch.Generator) -> Tensor | None:
        """How much each unit should grow; None where no gradient tells."""
        if self.grow == "random":
            return torch.rand(grid.size, generator=draw).to(weight.device)
        return None if weight.grad is None else grid.cells(weight.grad).abs().sum(1).float()


def _exchanged(keep: Tensor, sizes: Tensor, wanted: Tensor, share: float) -> Tensor:
    """Drop a share of the units kept, the smallest; among all that then are out, take in the most wanted, as many."""
    active = keep.nonzero().flatten()
    count = int(share * len(active))
    after = keep.clone()
    after[active[sizes[active].sort(stable=True).indices[:count]]] = False
    out = (~after).nonzero().flatten()
    after[out[wanted[out].sort(descending=True, stable=True).indices[:count]]] = True
    return after


def _clear_moments(weight: Tensor, grown: Tensor, optimizers: Sequence[Optimizer]) -> None:
    """Whatever an optimizer remembers of each element of the weight begins anew where it has grown."""
    for optimizer in optimizers:
        for value in optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.masked_fill_(grown, 0)


def _weights(groups: Groups, model: nn.Module) -> Iterator[tuple[str, Grid, nn.Parameter]]:
    for group in groups:
        assert group.grid is not None
        yield group.name, group.grid, model.get_parameter(group.name)


def _drawn(groups: Groups, budget: Budget, shares: Densities, seed: int) -> Plan:
    """Random places at the budget."""
    draw = torch.Generator().manual_seed(seed)
    scores = {group.name: torch.rand(group.size, generator=draw) for group in groups}
    return allocate(groups, scores, budget, scope="layer", densities=shares)


def _own(groups: Groups, plan: Plan) -> Plan:
    """A given plan with a keep vector for each of these groups, and for others that it has pruned."""
    if plan.groups.every is not groups.every:
        raise PlanError(
            "The plan that Regrow should start from was made on other groups than these. Make it from these groups, or "
            "load it with load_plan(directory, groups)."
        )
    left = plan.left
    items = tuple(g for g in groups.every if g.name in groups or g.leaf in left)
    keep = {g.name: left[g.leaf] if g.leaf in left else torch.ones(g.size, dtype=torch.bool) for g in items}
    return replace(plan, groups=replace(groups, items=items), keep=keep)


def _check(groups: Groups, steps: int, every: int, until: float, drop: float, grow: str) -> None:
    if not isinstance(groups.pattern, Element | Block):
        raise GroupError(
            f"Regrow moves single weights or blocks; {groups.pattern} is another pattern. Lay Element() or Block(r, c) "
            "over the model."
        )
    if groups.alive:
        raise GroupError(
            "Regrow was given groups of which an earlier plan has left some units. Give it the groups as they were "
            "laid, and that plan as `start`."
        )
    if steps < 1 or every < 1:
        raise PlanError(f"Regrow(steps={steps}, every={every}): expected at least 1; they count optimizer steps.")
    if not 0 <= until <= 1 or not 0 <= drop <= 1:
        raise PlanError(f"Regrow(until={until}, drop={drop}): expected shares, 0 to 1: of the steps, and of a weight.")
    if grow not in get_args(Grow):
        raise PlanError(f"Unknown grow={grow!r}; expected one of {', '.join(get_args(Grow))}.")
