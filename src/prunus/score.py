"""`score`: how much each unit matters, from the saliencies a criterion gives to elements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from prunus.criteria.needs import Criterion, check_needs, needs_of
from prunus.errors import CriterionError, PlanError
from prunus.graph.groups import Group, Groups, Member
from prunus.graph.private import unwrap
from prunus.graph.shards import in_pieces
from prunus.graph.width import counts, length
from prunus.stats import Stats
from prunus.types import Batch, Loss, wide

Reduce: TypeAlias = Literal["sum", "mean", "l2", "max"]
Scores: TypeAlias = Mapping[str, Tensor]
"""Group name -> one value a unit left; larger = keep."""


def score(
    model: nn.Module,
    groups: Groups,
    criterion: Criterion,
    *,
    data: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    reduce: Reduce = "sum",
    seed: int = 0,
) -> Scores:
    """Score every unit: its saliencies over all slices it owns, reduced to one value.

    `reduce`: `sum`; `mean` (over elements, so that wide and narrow layers compare); `l2`, the root of the sum of
    squares; `max`. A criterion with one value a unit (`fpgm`, `apoz`, ...) gives the mean of what all slices of the
    unit say, whatever `reduce` is. `model` has the widths of `groups` (after `groups.at(plan)`, the smaller model).

    Raises `CriterionError` when the criterion returns unknown names, shapes that do not broadcast, or values that
    are not finite; `PlanError` when the model does not have the shapes of the groups.
    """
    if reduce not in get_args(Reduce):
        raise CriterionError(f"Unknown reduce={reduce!r}; expected one of {', '.join(get_args(Reduce))}.")
    check_needs(criterion, groups.pattern, data, loss, traced=groups.source is not None)
    model = unwrap(model)
    check_shapes(model, groups)
    if in_pieces(model):
        raise PlanError(
            f"The weights of {type(model).__name__} are in pieces (FSDP, tensor parallelism), and a score needs whole "
            "ones. Score before it is sharded: a plan made then holds after; or use Gradual, which gathers them."
        )
    names = tuple(name for name, _ in model.named_parameters())
    saliency = _checked(criterion, Stats(model, names, data, loss, seed, groups.source), model)
    if groups.laid:
        return {group.name: _score_within(groups, group, saliency, reduce) for group in groups}
    whole: Reduce = "sum" if "units" in needs_of(criterion) else reduce
    sums = _Sums(saliency, {name: p.shape for name, p in model.named_parameters()}, whole)
    if "units" in needs_of(criterion):
        return {group.name: _value(groups, group, sums) for group in groups}
    return {group.name: _score_group(groups, group, sums, reduce) for group in groups}


def check_shapes(model: nn.Module, groups: Groups) -> None:
    """The model at hand must have the state of the traced model, at the widths the groups say are left."""
    if groups.source is None:
        return _check_laid_shapes(model, groups)
    kept = counts(groups.alive)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, axes in groups.graph.state_axes.items():
        shape = tuple(length(axis, kept) for axis in axes)
        found = tuple(state[name].shape) if name in state else None
        if found != shape and not (found is None and name in groups.graph.plain):
            raise PlanError(
                f"{type(model).__name__} has {name!r} of shape {found}, but the groups speak of shape {shape}. "
                "After a shrink use groups.at(plan); for another model trace that model."
            )


def _check_laid_shapes(model: nn.Module, groups: Groups) -> None:
    state = dict(model.named_parameters())
    for group in groups:
        found = tuple(state[group.name].shape) if group.name in state else None
        if group.grid is not None and found != group.grid.shape:
            raise PlanError(
                f"{type(model).__name__} has {group.name!r} of shape {found}, but the groups speak of shape "
                f"{group.grid.shape}. Lay the pattern over this model."
            )


def _checked(criterion: Criterion, stats: Stats, model: nn.Module) -> Mapping[str, Tensor]:
    label = f"Criterion {getattr(criterion, '__name__', type(criterion).__name__)!r}"
    given = criterion(stats)
    named = dict(model.named_parameters())
    for name, value in given.items():
        if name not in named:
            near = get_close_matches(str(name), named, n=1)
            raise CriterionError(
                f"{label} returned {name!r}, which is no parameter{f'; did you mean {near[0]!r}?' if near else '.'}"
            )
        try:
            torch.broadcast_to(value, named[name].shape)
        except RuntimeError:
            raise CriterionError(
                f"{label} returned shape {tuple(value.shape)} for {name!r}, which does not broadcast to the "
                f"parameter's {tuple(named[name].shape)}."
            ) from None
        if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):  # the sum is far cheaper
            raise CriterionError(
                f"{label} returned values for {name!r} that are not finite; check the loss and the weights."
            )
    return given


def _value(groups: Groups, group: Group, sums: _Sums) -> Tensor:
    """The mean over all slices of a unit that something is said of."""
    owned = _telling(group, sums)
    parts = [sums.slices(m.state, m.dim)[groups.index(group, m)] for m in owned]
    return torch.cat(parts, 1).mean(1)


def _telling(group: Group, sums: _Sums) -> list[Member]:
    owned = [m for m in group.members if sums.tells(m.state, m.dim)]
    if not owned:
        raise CriterionError(
            f"The criterion gave no saliency for any parameter of group {group.name!r} "
            f"({', '.join(m.state for m in group.members[:4])}). Score it with another criterion or skip it."
        )
    return owned


def _score_group(groups: Groups, group: Group, sums: _Sums, reduce: Reduce) -> Tensor:
    owned = _telling(group, sums)
    indices = [groups.index(group, m) for m in owned]
    parts = [sums.slices(m.state, m.dim)[index] for m, index in zip(owned, indices, strict=True)]
    if reduce == "max":
        return torch.stack([part.amax(1) for part in parts]).amax(0)
    total = torch.stack([part.sum(1) for part in parts]).sum(0)
    if reduce == "mean":
        return total / sum(sums.elements(m.state, m.dim) * i.shape[1] for m, i in zip(owned, indices, strict=True))
    return total.sqrt() if reduce == "l2" else total


def _score_within(groups: Groups, group: Group, saliency: Mapping[str, Tensor], reduce: Reduce) -> Tensor:
    """Scores of elements or blocks of one weight, in its own precision."""
    given = saliency.get(group.name)
    assert group.grid is not None
    if given is None:
        raise CriterionError(
            f"The criterion gave no saliency for {group.name!r}: most likely this weight took part in no product with "
            f"these data. Leave it out with skip={group.name!r}, or take another criterion."
        )
    if tuple(given.shape) != group.grid.shape:
        raise CriterionError(
            f"The criterion gave a saliency of shape {tuple(given.shape)} for {group.name!r}; {groups.pattern} needs a "
            f"value for every element, shape {group.grid.shape}. A criterion with one value a unit serves Channel only."
        )
    cells = group.grid.cells(given if group.grid.elements == 1 else wide(given))
    if group.grid.elements > 1:
        cells = {"sum": cells.sum, "mean": cells.mean, "max": cells.amax, "l2": cells.norm}[reduce](dim=1)
    cells = cells.flatten()
    return cells[groups.left(group).to(cells.device)] if group.leaf in groups.alive else cells


@dataclass(frozen=True, eq=False)
class _Sums:
    """The saliency of every slice of every tensor, reduced once for all the groups that own slices of it."""

    saliency: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]
    reduce: Reduce
    known: dict[tuple[str, int], Tensor] = field(default_factory=dict[tuple[str, int], Tensor])

    def tells(self, name: str, dim: int) -> bool:
        """Is there a saliency that says something of the slices along `dim`?"""
        if name not in self.saliency:
            return False
        along = dim + self.saliency[name].ndim - len(self.shapes[name])
        return self.shapes[name][dim] == 1 or (along >= 0 and self.saliency[name].shape[along] > 1)

    def slices(self, name: str, dim: int) -> Tensor:
        """Sum, sum of squares, or maximum over each slice along `dim`; (size,), added up in float32 or better."""
        if (name, dim) not in self.known:
            saliency = self.saliency[name]
            full = torch.broadcast_to(wide(saliency), self.shapes[name])
            self.known[name, dim] = self._reduced(full, [d for d in range(full.ndim) if d != dim]).double().cpu()
        return self.known[name, dim]

    def _reduced(self, full: Tensor, over: list[int]) -> Tensor:
        full = full.square() if self.reduce == "l2" else full
        if not over:
            return full
        return full.amax(over) if self.reduce == "max" else full.sum(over)

    def elements(self, name: str, dim: int) -> int:
        """Elements in one slice along `dim`."""
        return self.shapes[name].numel() // self.shapes[name][dim]
