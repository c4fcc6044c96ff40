"""Small modules cut in half, proven and held to the original: shared by the tests of traps and of operations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from units import zeroed

from prunus.allocate import allocate
from prunus.apply.shrink import shrink
from prunus.apply.verify import Proof, verify
from prunus.graph.group import Groups, group
from prunus.graph.trace import trace
from prunus.plan import Plan
from prunus.types import Budget

L, S = nn.Linear, nn.Sequential


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


VECTOR, IMAGE, WORDS, IDS = draw(2, 8), draw(2, 3, 8, 8), draw(2, 5, 16), torch.arange(10).view(2, 5)


class Net(nn.Module):
    """A module with the parts and the forward pass given, so that a trap fits in a few lines.

    Tensors among the parts are plain attributes: neither parameters nor buffers.
    """

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(draw(*shape))


@dataclass
class Half:
    """A model, its half, and the proof."""

    model: nn.Module
    small: nn.Module
    plan: Plan
    proof: Proof

    @property
    def groups(self) -> Groups:
        return self.plan.groups

    @property
    def zeroed(self) -> nn.Module:
        return zeroed(self.model, self.plan)


def halve(model: nn.Module, inputs: Any, **only: Any) -> Half:
    """Half of every group's units go, at random."""
    groups = group(trace(model, inputs)).only(**only)
    scores = {g.name: torch.rand(g.size, generator=torch.Generator().manual_seed(g.size)) for g in groups}
    plan = allocate(groups, scores, Budget("units", at_most=0.5), scope="layer")
    small = shrink(model, plan, verify=False)
    return Half(model, small, plan, verify(model, small, plan))


@torch.no_grad()
def assert_same(a: nn.Module, b: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Two models give the same result in eval mode, bit for bit but for rounding."""
    expected, found = (copy.deepcopy(m).eval()(*args, **kwargs) for m in (a, b))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max().clamp(min=1e-3)))


def described(groups: Groups) -> str:
    return ", ".join(f"{g.name} {g.size}{'' if g.exact else ' inexact'}" for g in groups)
