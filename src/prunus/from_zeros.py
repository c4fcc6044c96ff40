"""`plan_from_zeros`: a plan of the zeros that something else has made."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from prunus.allocate import keep_counts
from prunus.errors import PlanError
from prunus.graph.graph import Graph
from prunus.graph.group import group
from prunus.graph.groups import Group, Groups
from prunus.graph.private import State, private_copy, state_of, unwrap
from prunus.graph.still import dead_units
from prunus.patterns import Element, NofM
from prunus.plan import Plan
from prunus.score import check_shapes


def plan_from_zeros(model: nn.Module, groups: Groups | Graph | None = None, *, constants: bool = True) -> Plan:
    """Find the zeros of a model, made by L1 training, `torch.nn.utils.prune` (removed or not) or another tool's masks.

    With the channels of a traced model (`groups`, or its graph) the plan removes the dead ones, and `shrink` makes the
    model really smaller. A channel is dead when, where it is read (in eval and in train mode), it is zero or multiplied
    by zeros alone; with `constants` also when it is a constant there: its filter, or the scale of its norm, is zero,
    but a bias or shift goes on. That constant is lost with it, so move it with `fold_constants`, or recover, or pass
    `constants=False` to keep such channels; `plan.provenance["constants"]` counts them by group. Kept counts are
    rounded up to `round_to`. Groups whose removal is not exact are left alone.

    With elements or blocks, or with the model alone, the plan keeps what is not zero, for `mask` to hold. Tensors that
    are zero throughout stay as they are: new layers often start there.

    Raises `PlanError` when every unit of a group is dead, or when an N:M cell has more than n that are not zero.

    >>> from prunus import shrink, trace
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> from torch.nn.utils.prune import ln_structured, remove
    >>> ln_structured(net[0], "weight", amount=0.5, n=2, dim=0)
    Linear(in_features=4, out_features=8, bias=True)
    >>> _ = remove(net[0], "weight")
    >>> shrink(net, plan_from_zeros(net, trace(net, torch.randn(2, 4))))[0].out_features
    4
    """
    model = unwrap(model)
    if isinstance(groups, Graph):
        groups = group(groups)
    groups = group(model, pattern=Element()) if groups is None else groups
    check_shapes(model, groups)
    return _within(model, groups) if groups.laid else _slices(model, groups, constants)


def _within(model: nn.Module, groups: Groups) -> Plan:
    state = state_of(model)
    keep = {g.name: _alive_cells(_effective(model, state, g.name), g) for g in groups}
    for g in groups:
        if isinstance(groups.pattern, NofM):
            _check_cells(g, keep[g.name], groups.pattern)
    return Plan(groups, {name: alive for name, alive in keep.items() if bool(alive.any())}, None, {}, {"from": "zeros"})


def _effective(model: nn.Module, state: State, name: str) -> Tensor:
    """The weight as it is used: `torch.nn.utils.prune` keeps `weight_orig` and `weight_mask` until it is removed.

    A parametrization, such as the masks of `torch.ao.pruning`, is computed on a copy, so that none of its state moves.
    """
    weight = state.tensors[name].detach()
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf == "original" and isinstance(owner, ParametrizationList):
        with torch.no_grad():
            used: Tensor = private_copy(owner).eval()()
        return used if used.shape == weight.shape else weight
    mask = state.tensors.get(name.removesuffix("_orig") + "_mask") if name.endswith("_orig") else None
    return weight if mask is None else weight * mask


def _alive_cells(weight: Tensor, group: Group) -> Tensor:
    assert group.grid is not None
    return (group.grid.cells(weight) != 0).any(1).cpu()


def _check_cells(group: Group, alive: Tensor, pattern: NofM) -> None:
    assert group.grid is not None
    most = int(group.grid.along_inputs(alive, pattern.m).sum(2).max())
    if most > pattern.n:
        raise PlanError(
            f"{group.name!r} has {most} weights that are not zero among {pattern.m} consecutive inputs; {pattern} "
            f"allows {pattern.n}. Its zeros follow another pattern: read them with Element(), or skip it."
        )


def _slices(model: nn.Module, groups: Groups, constants: bool) -> Plan:
    if groups.alive:
        raise PlanError(
            "These groups are what an earlier plan leaves; trace the model as it is now, and use its groups."
        )
    exact = groups.only(exact=True)
    state = state_of(model)
    facts = dead_units(groups.graph, state.tensors)
    found = {g.name: facts[g.leaf] for g in exact if g.leaf in facts}
    dead = {name: fact.still if constants else fact.zero for name, fact in found.items()}
    dead = {name: gone for name, gone in dead.items() if bool(gone.any())}
    for name, gone in dead.items():
        if bool(gone.all()):
            raise PlanError(
                f"Every unit of {name!r} is dead: nothing that depends on the input passes it any more, and removing "
                f"all would cut the model in two. Leave it out with groups.skip({name!r}), or train the model again."
            )
    keep = keep_counts(exact, {g.name: _alive(g, dead) for g in exact}) if dead else {}
    lost = {name: int((~keep[name] & ~found[name].zero).sum()) for name in dead}
    return Plan(exact, keep, None, {}, {"from": "zeros", "constants": {name: n for name, n in lost.items() if n}})


def _alive(group: Group, dead: Mapping[str, Tensor]) -> Tensor:
    return ~dead[group.name] if group.name in dead else torch.ones(group.size, dtype=torch.bool)
