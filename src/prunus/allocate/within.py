"""Which elements or blocks within tensors stay. Each costs a fixed amount, so a budget is a count."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf

import torch
from torch import Tensor

from prunus.allocate.limit import limit_of, unreachable
from prunus.allocate.shares import Shares, largest
from prunus.cost import unit_costs, whole
from prunus.graph.groups import Group, Groups
from prunus.patterns import NofM
from prunus.types import Budget

_SLACK = 1e-9
"""Of a unit: 0.3 * 10 is 3, though floating point says a little less."""
_PARTS = 2**40
"""Of a share: a share that must be lowered is the largest that fits to within this."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """One weight under choice: `scores` of all its units (-inf where a unit is gone), the cost of each, the fewest that
    stay, and how many are left."""

    group: Group
    scores: Tensor
    cost: float
    least: int
    left: int

    def allowed(self, wanted: float) -> int:
        return min(self.left, max(self.least, floor(wanted + _SLACK)))


def keep_cells(groups: Groups, scores: Mapping[str, Tensor], pattern: NofM) -> dict[str, Tensor]:
    """The best n of every m consecutive inputs."""
    return {g.name: _best_of_cells(g, _full(groups, g, scores[g.name]), pattern) for g in groups}


def _best_of_cells(group: Group, scores: Tensor, pattern: NofM) -> Tensor:
    assert group.grid is not None
    cells = group.grid.along_inputs(scores, pattern.m)
    best = cells.sort(dim=2, descending=True, stable=True).indices[:, :, : pattern.n]
    keep = torch.zeros_like(cells, dtype=torch.bool).scatter_(2, best, True)
    return (keep & (cells > -inf)).flatten().cpu()


def keep_within(
    groups: Groups,
    scores: Mapping[str, Tensor],
    budget: Budget,
    scope: str,
    shares: Shares | None,
    keep_at_least: float,
) -> dict[str, Tensor]:
    """Group name -> the units of the model as it was that stay."""
    costs, before = unit_costs(budget.metric, groups), whole(budget.metric, groups)
    sheets = [_sheet(groups, g, scores[g.name], costs.unit[g.name], keep_at_least) for g in groups]
    room = limit_of(budget, before) - costs.rest
    together = scope == "global" and shares is None
    keep = _together(sheets, room) if together else _apart(sheets, room, shares, by_row=scope == "row")
    spent = sum(s.cost * int(k.sum()) for s, k in zip(sheets, keep, strict=True))
    if spent > room + _SLACK * max(1.0, abs(room)):
        raise unreachable(budget, costs.rest + spent, before, shares)
    return {s.group.name: k for s, k in zip(sheets, keep, strict=True)}


def _sheet(groups: Groups, group: Group, scores: Tensor, cost: float, keep_at_least: float) -> Sheet:
    left = scores.numel()
    least = min(left, max(1, ceil(keep_at_least * group.size - _SLACK)))
    return Sheet(group, _full(groups, group, scores), cost, least, left)


def _full(groups: Groups, group: Group, scores: Tensor) -> Tensor:
    """Scores of the units left as scores of all units, those that are gone at -inf."""
    scores = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
    if group.leaf not in groups.alive:
        return scores
    full = scores.new_full((group.size,), -inf)
    full[groups.left(group).to(scores.device)] = scores
    return full


def _together(sheets: Sequence[Sheet], room: float) -> list[Tensor]:
    """The best units of all sheets, as many as there is room for; the least of each sheet come first."""
    ranked = torch.cat([torch.where(top(s.scores, s.least), inf, s.scores) for s in sheets])
    sizes = [s.group.size for s in sheets]
    least, left = sum(s.least for s in sheets), sum(s.left for s in sheets)
    if len({s.cost for s in sheets}) == 1:
        count = floor(room / sheets[0].cost + _SLACK) if sheets[0].cost else left
        keep = top(ranked, min(left, max(least, count)))
    else:
        turns = torch.cat([torch.arange(n, device=ranked.device) / n for n in sizes]).sort(stable=True).indices
        order = turns[ranked[turns].sort(descending=True, stable=True).indices]  # equal scores take turns
        each = torch.repeat_interleave(torch.tensor([s.cost for s in sheets], dtype=torch.float64), torch.tensor(sizes))
        spent = each.to(order.device)[order].cumsum(0)
        count = int(torch.searchsorted(spent, room * (1 + 1e-12) + _SLACK, right=True))
        keep = torch.zeros_like(ranked, dtype=torch.bool)
        keep[order[: min(left, max(least, count))]] = True
    return list(keep.cpu().split(sizes))


def _apart(sheets: Sequence[Sheet], room: float, shares: Shares | None, by_row: bool) -> list[Tensor]:
    """The same share of every sheet, or that which is asked for; and of every row of it."""
    counts = _same_share(sheets, room) if shares is None else _given_shares(sheets, room, shares)
    choose = _top_of_rows if by_row else lambda s, count: top(s.scores, count)
    return [choose(s, count).cpu() for s, count in zip(sheets, counts, strict=True)]


def _same_share(sheets: Sequence[Sheet], room: float) -> list[int]:
    """Units of each sheet at the share that there is room for; at the largest below, where the least take too much."""
    share = min(1.0, room / (sum(s.cost * s.group.size for s in sheets) or 1.0))

    def counts(part: int) -> list[int]:
        return [s.allowed(share * part / _PARTS * s.group.size) for s in sheets]

    def exceeds(part: int) -> bool:
        return sum(s.cost * n for s, n in zip(sheets, counts(part), strict=True)) > room * (1 + 1e-12) + _SLACK

    return counts(max(0, bisect_left(range(_PARTS + 1), True, key=exceeds) - 1))


def _given_shares(sheets: Sequence[Sheet], room: float, shares: Shares) -> list[int]:
    """Units of each sheet at the largest overall density that there is room for, also before fractions are dropped."""

    def wanted(density: float) -> list[float]:
        each = shares(density)
        return [min(float(s.left), each[s.group.name] * s.group.size) for s in sheets]

    def cost(units: Sequence[float]) -> float:
        return sum(s.cost * n for s, n in zip(sheets, units, strict=True))

    def allowed(units: Sequence[float]) -> list[int]:
        return [s.allowed(n) for s, n in zip(sheets, units, strict=True)]

    def fits(density: float) -> bool:
        units = wanted(density)
        return max(cost(units), cost(allowed(units))) <= room * (1 + 1e-12) + _SLACK

    guess = room / (sum(s.cost * s.group.size for s in sheets) or 1.0)
    return allowed(wanted(largest(fits, min(1.0, max(0.0, guess)))))


def _top_of_rows(sheet: Sheet, count: int) -> Tensor:
    """`count` units, equally many of each row to within one; the rows with the best candidates get one more."""
    assert sheet.group.grid is not None
    rows = sheet.scores.view(sheet.group.grid.rows, -1)
    left = (rows > -inf).sum(1)  # a row that an earlier plan left with fewer keeps all of them
    each = bisect_left(range(rows.shape[1]), True, key=lambda n: int(left.clamp(max=n + 1).sum()) > count)
    kept = left.clamp(max=each)
    more = count - int(kept.sum())
    ranked = rows.sort(dim=1, descending=True, stable=True)
    if more:
        kept += top(ranked.values[:, each], more)
    place = torch.arange(rows.shape[1], device=rows.device)
    keep = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, ranked.indices, place < kept[:, None])
    return keep.flatten()


def top(values: Tensor, count: int) -> Tensor:
    """Which are the `count` largest; of equal ones an evenly spaced choice.

    >>> top(torch.tensor([3.0, 1.0, 2.0, 2.0]), 2)
    tensor([ True, False,  True, False])
    """
    if count >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    edge = values.kthvalue(values.numel() - count + 1).values
    keep = values > edge
    ties = (values == edge).nonzero().flatten()
    missing = count - int(keep.sum())
    keep[ties[torch.arange(missing, device=ties.device) * len(ties) // missing]] = True
    return keep
