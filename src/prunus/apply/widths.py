"""`say_widths`: let a smaller model's configuration say its new sizes, where it can."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import nn

from prunus.apply.config import Rebuilt, is_built_from_config, refit
from prunus.graph.axes import Atom, Axis
from prunus.graph.configuration import Change, Place, config_of, configs_of, numbers_of, place_configs
from prunus.graph.private import state_of
from prunus.graph.trace import integers_of
from prunus.graph.width import counts, length
from prunus.plan import Plan


def say_widths(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Change the configuration of `small`, a cut copy of `model`, in place, so that its class builds it.

    Nothing changes where no number of the configuration says the new sizes (layers that were alike and are no more, a
    head dimension that the class computes), or where a model built anew computes something else.
    """
    if not _cut_alike(model, small) or not is_built_from_config(model):
        return
    plain = configs_of(small)
    for rebuilt in _found(model, small, plan):
        rebuilt.put(small)
        if rebuilt.agrees(small):
            return
        place_configs(small, plain)


def _found(model: nn.Module, small: nn.Module, plan: Plan) -> Iterator[Rebuilt]:
    """Configurations that build the sizes of the smaller model: by numbers they have, or by some they can be given."""
    sizes, said = _new_sizes(plan), numbers_of(config_of(model))
    names = list(plan.graph.eval.program.spec.get("dict", {})) or None
    set_ones: list[Change] = [{place: new} for place, old in said.items() for size, new in sizes if old == size]
    unset: list[Change] = [
        {place: new} for place, old in said.items() if old is None for new in sorted({new for _, new in sizes})
    ]
    ways: list[tuple[list[Change], Change]] = [(set_ones, {}), ([*set_ones, *unset], {})]
    for changes, added in [*ways, (set_ones, _unsaid_integers(small, said))]:
        yield from refit(model, small, changes, plan.graph.examples, names, added=added)


def _cut_alike(model: nn.Module, small: nn.Module) -> bool:
    """Have tensors whose names differ in numbers alone, and that were of one shape, one shape still?"""
    before, after = state_of(model).tensors, state_of(small).tensors
    now: dict[tuple[str, tuple[int, ...]], set[tuple[int, ...]]] = {}
    for name, tensor in before.items():
        now.setdefault((re.sub(r"\d+", "#", name), tuple(tensor.shape)), set()).add(tuple(after[name].shape))
    return all(len(shapes) == 1 for shapes in now.values())


def _new_sizes(plan: Plan) -> list[tuple[int, int]]:
    """(old, new) of every length of an axis of state, or of factors of it side by side, that changes."""
    before, after = counts(plan.groups.alive), counts(plan.left)
    found: dict[tuple[int, int], None] = {}
    for axes in plan.graph.state_axes.values():
        for part in (part for axis in axes for part in _parts(axis)):
            old, new = length(part, before), length(part, after)
            if old != new:
                found[old, new] = None
    return list(found)


def _parts(axis: Axis) -> Iterator[Axis]:
    atoms: tuple[Atom, ...] = axis.atoms
    for start in range(len(atoms)):
        yield from (Axis(atoms[start:end]) for end in range(start + 1, len(atoms) + 1))
    for atom in atoms:
        for segment in atom.segments or ():
            yield from _parts(segment)


def _unsaid_integers(small: nn.Module, said: Mapping[Place, int | None]) -> Change:
    """Integers that the user's modules agree on and the configuration does not name; classes often look for them."""
    names = {place[-1] for place in said}
    held: dict[str, set[int]] = {}
    for path, entries in integers_of(small).items():
        if not type(small.get_submodule(path)).__module__.startswith("torch."):
            for key, value in entries.items():
                held.setdefault(key, set()).add(value)
    return {
        (key,): values.pop()
        for key, values in held.items()
        if len(values) == 1 and key.isidentifier() and key not in names
    }
