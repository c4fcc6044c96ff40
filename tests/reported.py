"""What the pages of the tests are about: small networks, results of both kinds, and names that try to break out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.measure import latency

EVIL = "</script><script>window.hacked=1</script>"
EVIL_IMAGE = "\"><img src=x onerror=window.hacked=2>'&amp;"
EVIL_LINK = "<a href='http://evil.test/'>☃ {{ 7 * 7 }} %{x}</a>\u2028"
EVILS = (EVIL, EVIL_IMAGE, EVIL_LINK)
INPUTS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A stem, a residual layer, a head; the names of the modules are given."""

    def __init__(self, names: tuple[str, str, str] = ("stem", "inner", "head")) -> None:
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Conv2d(3, 16, 3, padding=1))
        self.add_module(names[1], nn.Conv2d(16, 16, 3, padding=1))
        self.add_module(names[2], nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        stem, inner, head = (self._modules[name] for name in self.names)
        assert stem is not None
        assert inner is not None
        assert head is not None
        h = torch.relu(stem(x))
        h = h + torch.relu(inner(h))
        return head(h.mean((2, 3)))


@dataclass(frozen=True, eq=False)
class Row:
    figures: Mapping[str, prunus.Measurement]
    correct: Tensor


def scores(model: nn.Module) -> Tensor:
    """Right or wrong on 60 samples; something that differs between models."""
    draw = torch.Generator().manual_seed(sum(p.numel() for p in model.parameters()))
    return (torch.rand(60, generator=draw) < 0.9).float()


def result_of(model: nn.Module, pattern: Any = None, criterion: Any = prunus.criteria.magnitude) -> prunus.Result:
    """Prune a network by half, in two rounds where channels go; timings are short."""
    before, latency.SECONDS = latency.SECONDS, 0.05
    try:
        return prunus.prune(
            model,
            INPUTS,
            budget=prunus.Budget("units", at_most=0.5),
            pattern=pattern,
            criterion=criterion,
            scope="layer",
            rounds=2 if pattern is None else 1,
            evaluate=scores,
        )
    finally:
        latency.SECONDS = before


def rows_of(result: prunus.Result, names: tuple[str, ...] = ("dense", "random", "pruned")) -> dict[str, Row]:
    """Rows as a demonstration has them; the last one is slower than dense."""
    old = {m.metric: m for m in result.before if m.metric != "accuracy"}
    new = {m.metric: m for m in result.after if m.metric != "accuracy"}
    new["latency_ms"] = slower(old["latency_ms"], 1.5)
    right = torch.tensor([1.0] * 57 + [0.0] * 3)
    every = [old] * (len(names) - 1) + [new]
    return {
        name: Row({**figures, "dense_latency_ms": old["latency_ms"]}, right.roll(i))
        for i, (name, figures) in enumerate(zip(names, every, strict=True))
    }


def slower(m: prunus.Measurement, factor: float) -> prunus.Measurement:
    """The latency, and each single call where they are known, so many times as long."""
    calls: dict[str, Any] = {"samples": tuple(t * factor for t in m.samples)} if hasattr(m, "samples") else {}
    return replace(m, value=m.value * factor, **calls)
