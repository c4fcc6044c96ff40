"""`check_ahead`: what scoring and allocating will ask for, asked before the training that comes first."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from prunus.allocate.choose import Scope, allocate
from prunus.criteria.needs import Criterion, check_needs
from prunus.densities import Densities
from prunus.graph.groups import Groups
from prunus.types import Batch, Budget, Loss


def check_ahead(
    groups: Groups,
    criterion: Criterion,
    budget: Budget | None,
    *,
    scope: Scope,
    densities: Densities | None = None,
    keep_at_least: float,
    data: Iterable[Batch] | None,
    loss: Loss | None,
) -> None:
    """Raise what `score` and `allocate` will raise later: for what a criterion lacks, or a budget out of reach."""
    check_needs(criterion, groups.pattern, data, loss, traced=groups.source is not None)
    level = {g.name: torch.zeros(int(groups.left(g).sum())) for g in groups}
    allocate(groups, level, budget, scope=scope, densities=densities, keep_at_least=keep_at_least)
