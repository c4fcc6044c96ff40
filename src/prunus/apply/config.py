"""The configuration that builds a smaller model: found by trying, held to the state and to the results.

For classes that are built from their `config` alone, as in transformers: `type(model)(model.config)`. Nothing is known
of any architecture. A number of the configuration is changed where the model it builds, on the meta device, then comes
nearer in the names and shapes of its state; what is found is believed only when a model built from it for real, with
the smaller model's state, computes the same.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.apply.compare import REFUSALS, error_between, results
from prunus.apply.surgery import replace_state
from prunus.graph.configuration import Change, changed, config_of, configs_of, place_configs
from prunus.graph.private import state_of
from prunus.graph.trace import integers_of
from prunus.types import Inputs

_SAME = 1e-6
"""Relative error accepted between two models that do the same operations: none, or the rounding of a few."""


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """A configuration under which the user's class has the state of the smaller model."""

    make: type[nn.Module]
    config: Any
    examples: Sequence[Inputs]
    outputs: Sequence[str] | None

    def put(self, small: nn.Module) -> None:
        """Let every module of the smaller model hold the configuration that its class would give it."""
        built = _built(self.make, self.config)
        assert built is not None
        place_configs(small, configs_of(built))

    def agrees(self, small: nn.Module) -> bool:
        """Does a model built from the configuration, with this state, compute the same on every example?"""
        again = _built(self.make, self.config, "cpu")
        first = next(small.parameters(), None)
        if again is None or first is None:
            return False
        again.load_state_dict(small.state_dict(), assign=True)
        theirs, built = state_of(small), state_of(again).tensors
        tables = {name: theirs.tensors[name] for name in theirs.hidden if name in theirs.tensors and name in built}
        replace_state(again, {name: built[name].to(t.device, t.dtype) for name, t in tables.items()}, {})  # cast since
        try:
            pairs = [(results(small, e, self.outputs), results(again, e, self.outputs)) for e in self.examples]
        except REFUSALS:
            return False
        return max(error_between(a, b) for a, b in pairs) <= min(_SAME, 8 * torch.finfo(first.dtype).eps)


def refit(
    model: nn.Module,
    small: nn.Module,
    changes: Sequence[Change],
    examples: Sequence[Inputs],
    outputs: Sequence[str] | None,
    *,
    added: Change | None = None,
) -> Iterator[Rebuilt]:
    """Configurations of `model`, with as many of the `changes` as lead to the state of `small`, most likely first.

    Each round takes the change that comes nearest; the first of several as good. Integers of modules decide between
    configurations of the same state; where they are as good, four heads of four and two of eight, the alternatives
    follow. What is `added` stays where it is needed.
    """
    make, config, wanted = type(model), config_of(model), _Structure.of(small)
    done: Change = added or {}
    now, left = _structure(make, changed(config, done)), list(changes)
    while True:
        tried = [(_structure(make, changed(config, {**done, **change})), change) for change in left]
        tried = [(made, change) for made, change in tried if made not in (None, now)]  # nothing heeds the others
        made, best = min(tried, key=lambda pair: wanted.apart(pair[0]), default=(now, {}))
        if wanted.apart(made) >= wanted.apart(now):
            break
        now, done, left = made, {**done, **best}, [change for _, change in tried if change is not best]
    for place in added or {}:
        fewer = {other: value for other, value in done.items() if other != place}
        done = fewer if _structure(make, changed(config, fewer)) == now else done
    for made, change in [(now, {}), *tried]:
        if wanted.apart(made)[0] == 0:
            yield Rebuilt(make, changed(config, {**done, **change}), examples, outputs)


def is_built_from_config(model: nn.Module) -> bool:
    """Has `type(model)(model.config)` the state of the model, name for name?"""
    config = config_of(model)
    return config is not None and not _Structure.of(model).apart(_structure(type(model), config))[0]


@dataclass(frozen=True)
class _Structure:
    """The names and shapes of a model's state, and the integers of its modules."""

    shapes: frozenset[tuple[str, tuple[int, ...]]]
    integers: frozenset[tuple[str, str, int]]

    @staticmethod
    def of(model: nn.Module) -> _Structure:
        state = state_of(model)
        tensors = {**state.tensors, **{name: state.tensors[source] for name, source in state.aliases.items()}}
        integers = ((path, key, n) for path, entries in integers_of(model).items() for key, n in entries.items())
        return _Structure(frozenset((name, tuple(t.shape)) for name, t in tensors.items()), frozenset(integers))

    def apart(self, other: _Structure | None) -> tuple[float, float]:
        """In how much a model differs in its state, and then in its integers."""
        if other is None:
            return float("inf"), float("inf")
        return len(self.shapes ^ other.shapes), len(self.integers ^ other.integers)


def _structure(make: type[nn.Module], config: Any) -> _Structure | None:
    built = _built(make, config)
    return None if built is None else _Structure.of(built)


def _built(make: type[nn.Module], config: Any, device: str = "meta") -> nn.Module | None:
    """A model of this class and a copy of this configuration; None where the class refuses it."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(copy.deepcopy(config))
    except Exception:  # noqa: BLE001 a constructor of the user's may refuse in any way
        return None
