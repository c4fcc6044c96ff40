"""A plan: which units of which groups stay. Pure data that can be printed, composed, saved and replayed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunus.errors import ArtifactError, GroupError, PlanError
from prunus.graph.graph import Graph
from prunus.graph.groups import Groups, check_kin
from prunus.graph.width import Keep
from prunus.types import Budget


@dataclass(frozen=True, eq=False)
class Plan:
    """For each group named in `keep`, a boolean vector over the units of the *traced* model: True stays.

    `costs` holds what the whole model will cost, as (before, after) by metric; `provenance` how the plan was made.
    """

    groups: Groups
    keep: Mapping[str, Tensor]
    budget: Budget | None = None
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, "tuple[float, float]"])
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name, mask in self.keep.items():
            group = self.groups[name]
            if mask.dtype != torch.bool or tuple(mask.shape) != (group.size,):
                raise PlanError(
                    f"The keep vector of {name!r} is {tuple(mask.shape)} {mask.dtype}; expected ({group.size},) "
                    "torch.bool: one entry for each unit of the traced model."
                )
            if not bool((mask & self.groups.left(group)).any()):
                raise PlanError(f"The plan removes every unit of {name!r}, which would cut the model in two; keep one.")

    @property
    def graph(self) -> Graph:
        return self.groups.graph

    @property
    def left(self) -> Keep:
        """What stays of every leaf, earlier removals included."""
        left = dict(self.groups.alive)
        for name, mask in self.keep.items():
            group = self.groups[name]
            left[group.leaf] = mask & self.groups.left(group)
        return left

    def then(self, following: Plan) -> Plan:
        """One plan that does this one and then the following one.

        Shrinking by the result equals shrinking by this plan and then by the following one, bit for bit.
        """
        try:
            check_kin(self.groups, following.groups, "The following plan", "make it with groups.at(plan)")
        except GroupError as error:
            raise PlanError(str(error)) from None
        if not _same_units(following.groups.alive, self.left):
            raise PlanError(
                "The following plan does not start where this one ends. Make it from the groups this plan leaves: "
                "groups.at(plan)."
            )
        items = {g.name: g for g in (*self.groups, *following.groups)}
        keep = {name: mask.clone() for name, mask in self.keep.items()}
        for name, mask in following.keep.items():
            keep[name] = keep[name] & mask if name in keep else mask.clone()
        groups = replace(self.groups, items=tuple(items.values()))
        return replace(following, groups=groups, keep=keep)

    def save(self, directory: str | Path) -> None:
        """Write `plan.json` and `plan.safetensors` (one bit a unit)."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        left = self.left
        masks = {group.name: left[group.leaf] for group in self.groups.every if group.leaf in left}
        save_file({name: pack(mask) for name, mask in masks.items()}, folder / "plan.safetensors")
        facts = {
            "structure": self.groups.structure,
            "sizes": {name: mask.numel() for name, mask in masks.items()},
            "budget": None if self.budget is None else vars(self.budget),
            "costs": {name: list(cost) for name, cost in self.costs.items()},
            "provenance": dict(self.provenance),
        }
        (folder / "plan.json").write_text(json.dumps(facts, indent=1) + "\n")

    def __str__(self) -> str:
        lines = [
            f"{name}: {before:,.0f} -> {after:,.0f} ({after / before:.1%})"
            for name, (before, after) in self.costs.items()
        ]
        width = max((len(name) for name in self.keep), default=0)
        for name, mask in self.keep.items():
            lines.append(f"  {name:<{width}}  {mask.numel():>5} -> {int(mask.sum()):>5}")
        return "\n".join(lines)


def load_plan(directory: str | Path, groups: Groups) -> Plan:
    """Read a saved plan and bind it to a traced model of the same structure: all that it and earlier plans removed.

    Raises `PlanError` for a model of another structure, `ArtifactError` for a missing or damaged file.
    """
    folder = Path(directory)
    try:
        facts: dict[str, Any] = json.loads((folder / "plan.json").read_text())
        bits = load_file(folder / "plan.safetensors")
        keep = {name: unpack(bits[name], int(size)) for name, size in facts["sizes"].items()}
        budget = None if facts["budget"] is None else Budget(**facts["budget"])
        costs = {name: cast("tuple[float, float]", tuple(cost)) for name, cost in facts["costs"].items()}
        structure, provenance = facts["structure"], facts["provenance"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder} holds no readable plan ({type(error).__name__}: {error}); expected plan.json and "
            "plan.safetensors as Plan.save writes them."
        ) from error
    if structure != groups.structure:
        raise PlanError(
            f"The plan in {folder} was made for a model of another structure than these groups. "
            "Trace the model it was made for; its weights may differ, its operations and shapes may not."
        )
    try:
        return Plan(replace(groups, items=groups.every, alive={}), keep, budget, costs, provenance)
    except GroupError as error:
        raise PlanError(f"The plan in {folder} names a group that this model does not have: {error}") from error


def pack(mask: Tensor) -> Tensor:
    """Booleans as bits, eight a byte, the first in the lowest bit.

    >>> pack(torch.tensor([True, False, True]))
    tensor([5], dtype=torch.uint8)
    """
    padded = torch.zeros(-(-mask.numel() // 8) * 8, dtype=torch.uint8)
    padded[: mask.numel()] = mask.to(torch.uint8)
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, size: int) -> Tensor:
    """The inverse of `pack` for `size` booleans; raises `ValueError` where there are too few bits."""
    bits = bits.cpu()
    mask = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().to(torch.bool)
    if bits.dtype != torch.uint8 or not size <= mask.numel() < size + 8:
        raise ValueError(f"{bits.numel()} bytes of {bits.dtype} for {size} units")
    return mask[:size].clone()


def _same_units(a: Keep, b: Keep) -> bool:
    """Do two sets of leaves keep the same units? Leaves that are not named stay whole."""
    whole = torch.ones(1, dtype=torch.bool)
    return all(bool((a.get(leaf, whole) == b.get(leaf, whole)).all()) for leaf in {*a, *b})
