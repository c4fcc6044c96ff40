"""`drop_layers`: a new model without some of its layers, proven equal to one that skips them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from prunus.apply.config import is_built_from_config, refit
from prunus.apply.layers import Layers, layers
from prunus.apply.skip import Skipped
from prunus.errors import GroupError
from prunus.graph.configuration import COUNTS, Change, config_of, configs_of, lists_cut, numbers_of, place_configs
from prunus.graph.private import private_copy, unwrap
from prunus.types import Inputs

_INDEX = re.compile(r"idx|index|layer|(^|_)(id|number)$")


def drop_layers(
    model: nn.Module,
    inputs: Any,
    *,
    names: str | Sequence[str] = (),
    count: int | None = None,
    scores: Mapping[str, float] | None = None,
    outputs: Sequence[str] | None = None,
) -> nn.Module:
    """A new model of the same class without whole layers; `model` is left as it is.

    `names` are globs of layers (see `layers`): all that match go or, with `count`, the `count` of the lowest score
    among them. `scores` stand in for the block influence. `outputs` selects entries of a mapping result, see `trace`.

    The layers after a dropped one move up, in their state names too; indices that the layers hold, and the counts and
    per-layer lists in the model's configuration, follow, so that `save_pretrained` and `from_pretrained` work. Where
    no configuration can say what is left, the model is right, its configuration stays, and a warning says so.

    The result is proven on every example, in eval mode: it must equal the original in which the dropped layers pass
    their input on, in float64 where the model allows.

    Raises `GroupError` for names or counts that fit no layers, `ProofError` when what is left computes something else
    (code that needs the layer: a skip connection from it, an index).
    """
    model, examples = unwrap(model), Inputs.examples(inputs)
    chosen = _chosen(layers(model, inputs), [names] if isinstance(names, str) else names, count, scores)
    skipped = Skipped.of(model, chosen, examples, outputs)
    small = without(model, chosen)
    plain, described = configs_of(small), is_built_from_config(model)
    for rebuilt in refit(model, small, _changes(model, chosen), examples, outputs) if described else ():
        rebuilt.put(small)
        if skipped.holds_for(small) and rebuilt.agrees(small):
            return small
        place_configs(small, plain)
    skipped.prove(small)
    if described:
        warnings.warn(_UNSAID.format(name=type(model).__name__), stacklevel=2)
    return small


_UNSAID = (
    "No configuration of {name} describes it without these layers: they are not built alike, or depend on their place. "
    "Its config is left as it was, so from_pretrained cannot rebuild what is left. Drop other layers (of alternating "
    "ones a pair), or keep the weights in safetensors and call drop_layers on a new model before loading them."
)


def without(model: nn.Module, chosen: Iterable[str]) -> nn.Module:
    """A copy of a model without some entries of its stacks; those behind move up."""
    small = private_copy(model, share=False)
    for path, gone in _by_stack(chosen).items():
        stack = small.get_submodule(path)
        entries: dict[str, nn.Module] = dict(vars(stack)["_modules"])
        left = [layer for key, layer in entries.items() if key not in gone]
        owner = small.get_submodule(path.rpartition(".")[0])
        for key, value in list(vars(owner).items()):
            if type(value) is int and value == len(entries) and COUNTS.search(key):
                setattr(owner, key, len(left))
        _renumber_indices(list(entries.values()), left)
        vars(stack)["_modules"] = dict(zip(_renumbered(list(entries), gone), left, strict=True))
    return small


def _by_stack(names: Iterable[str]) -> dict[str, list[str]]:
    """Stack -> the keys of its entries that go."""
    found: dict[str, list[str]] = {}
    for name in names:
        path, _, key = name.rpartition(".")
        found.setdefault(path, []).append(key)
    return found


def _renumbered(keys: list[str], gone: Sequence[str]) -> list[str]:
    """The keys of those that stay: moved up where keys count, kept where they are names.

    >>> _renumbered(["layer_0", "layer_1", "layer_2"], ["layer_1"])
    ['layer_0', 'layer_1']
    >>> _renumbered(["stem", "body", "head"], ["body"])
    ['stem', 'head']
    """
    parts = [re.fullmatch(r"(.*?)(\d+)", key) for key in keys]
    if all(parts):
        heads, numbers = zip(*((p[1], int(p[2])) for p in parts if p), strict=True)
        if len(set(heads)) == 1 and list(numbers) == list(range(numbers[0], numbers[0] + len(keys))):
            return keys[: len(keys) - len(gone)]
    return [key for key in keys if key not in gone]


def _renumber_indices(entries: list[nn.Module], left: list[nn.Module]) -> None:
    """Let each layer that stays know its new place, where all layers hold theirs."""
    for path, module in entries[0].named_modules():
        for key, first in list(vars(module).items()):
            if type(first) is not int or not _INDEX.search(key):
                continue
            holders = [dict(entry.named_modules()).get(path) for entry in entries]
            held = [vars(holder).get(key) if holder is not None else None for holder in holders]
            if held == list(range(first, first + len(entries))):
                for place, layer in enumerate(left, first):
                    setattr(layer.get_submodule(path), key, place)


def _changes(model: nn.Module, chosen: Sequence[str]) -> list[Change]:
    """What may change in a configuration: numbers that are a stack's length, with lists that are as long, or alone."""
    config = config_of(model)
    found: list[Change] = []
    for path, gone in _by_stack(chosen).items():
        keys = list(vars(model.get_submodule(path))["_modules"])
        stay = [place for place, key in enumerate(keys) if key not in gone]
        lists = lists_cut(config, len(keys), stay)
        said = {place: value for place, value in numbers_of(config).items() if place[:-1] not in lists}
        numbers = [place for place, value in said.items() if value == len(keys)]
        for place in sorted(numbers, key=lambda place: not COUNTS.search(".".join(map(str, place)))):
            found += [{**lists, place: len(stay)}, {place: len(stay)}] if lists else [{place: len(stay)}]
        found += [lists] if lists else []
    return found


def _chosen(
    found: Layers, names: Sequence[str], count: int | None, scores: Mapping[str, float] | None
) -> tuple[str, ...]:
    """The layers that go, in the model's order."""
    if not names and count is None:
        raise GroupError("drop_layers was given neither names nor count; say which layers go, or how many.")
    scores = found.scores if scores is None else scores
    _refuse_unknown([name for name in scores if name not in found.scores], found, "scores names")
    _refuse_unknown([g for g in names if not any(fnmatchcase(n, g) for n in found.names)], found, "names holds")
    matching = [n for n in found.names if n in scores and (not names or any(fnmatchcase(n, g) for g in names))]
    if count is None:
        return tuple(matching)
    if not 0 < count <= len(matching):
        raise GroupError(
            f"count={count}; expected between 1 and the layers that may go here, {len(matching)}. Print "
            f"prunus.layers(model, inputs) to see them. {_others(found)}"
        )
    taken = sorted(matching, key=lambda name: scores[name])[:count]
    return tuple(name for name in found.names if name in taken)


def _others(found: Layers) -> str:
    if found.fixed:
        return f"Not among them: {'; '.join(f'{name}: {why}' for name, why in list(found.fixed.items())[:3])}."
    return "Layers are looked for in each nn.ModuleList and nn.Sequential that holds several modules of one class."


def _refuse_unknown(unknown: Sequence[str], found: Layers, what: str) -> None:
    for name in unknown:
        why = next((f"{n} cannot go: {why}" for n, why in found.fixed.items() if fnmatchcase(n, name)), "")
        some = ", ".join(repr(n) for n in found.names[:4]) or "none here"
        raise GroupError(
            f"{what} {name!r}, which is no layer that may be left out. {why or 'No layer is called that'}. "
            f"Layers that may: {some}; print prunus.layers(model, inputs)."
        )
