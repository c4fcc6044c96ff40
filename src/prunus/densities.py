"""How much of each layer stays at an overall density: uniform, Erdős-Rényi, by outliers, along the depth.

A function `(groups, scores, density) -> {group name: share that stays}` for `allocate(..., densities=...)`, with shares
that rise with `density`. Options go in by `functools.partial(densities.owl, outlier=7.0)`. LAMP is
no such function but a criterion (`criteria.lamp`): with its scores the global scope does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from prunus.graph.groups import Group, Groups

Densities: TypeAlias = Callable[[Groups, Mapping[str, Tensor], float], Mapping[str, float]]


def uniform(groups: Groups, scores: Mapping[str, Tensor], density: float) -> Mapping[str, float]:  # noqa: ARG001
    """The same share of every group, which is what `scope="layer"` does by itself."""
    return {group.name: density for group in groups}


def erk(groups: Groups, scores: Mapping[str, Tensor], density: float) -> Mapping[str, float]:  # noqa: ARG001
    """Density ~ (n_out + n_in + k_h + k_w) / (n_out n_in k_h k_w): small layers stay denser. Of linear layers plain ER.

    Layers that would be denser than 1 are dense, and the others share what is left, so that the mean over all units is
    `density`. A group of channels takes the shapes of the weights that make it (our extension; the paper has weights).

    Source: Evci et al. 2020, arXiv:1911.11134, section 3, (1); ER: Mocanu et al. 2018, arXiv:1707.04780.

    >>> from torch import nn
    >>> from prunus import Element, densities, group
    >>> net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 30))
    >>> shares = densities.erk(group(net, pattern=Element()), {}, 0.3)
    >>> round(shares["0.weight"] / shares["1.weight"], 6)  # (20 / 100) / (40 / 300)
    1.5
    """
    raw = {group.name: _raw(groups, group) for group in groups}
    sparse = dict(sorted(raw.items(), key=lambda item: item[1]))
    sizes = {group.name: group.size for group in groups}
    room, factor = density * sum(sizes.values()), 0.0
    while sparse:
        factor = room / sum(raw[name] * sizes[name] for name in sparse)
        densest = next(reversed(sparse))
        if factor * raw[densest] <= 1:
            break
        del sparse[densest]
        room -= sizes[densest]
    return {name: factor * raw[name] if name in sparse else 1.0 for name in raw}


def owl(
    groups: Groups, scores: Mapping[str, Tensor], density: float, *, outlier: float = 5.0, bound: float = 0.08
) -> Mapping[str, float]:
    """Layers with more outliers stay denser: D = share of scores above `outlier` times the mean score of their layer.

    density_l = density + 2 bound (D_l - min D) / (max D - min D), shifted so that the mean over all units is `density`:
    from the layer with the fewest outliers to that with the most lie 2 `bound`, as in the authors' code, whose layers
    may after the shift leave the [density - bound, density + bound] of the paper. There all weights of one transformer
    layer share a density; here each group has its own. Where all layers have equally many outliers, it is uniform.
    `bound` is at most half the density: the paper goes to a density of 0.3, and at a few percent layers would lose all.

    Meant for scores with outliers, such as those of Wanda. Units that are gone count as scores of zero.

    Source: Yin et al. 2024, arXiv:2310.05175 (LOD): M = 5 or 7, lambda = 0.08.
    """
    found = torch.tensor([_outliers(scores[g.name], g.size, outlier) for g in groups], dtype=torch.float64)
    reach = found.max() - found.min()
    bound = min(bound, density / 2)
    return _shifted(groups, 2 * bound * (found - found.min()) / reach if reach > 0 else found * 0, density)


def arithmetic(
    groups: Groups,
    scores: Mapping[str, Tensor],  # noqa: ARG001
    density: float,
    *,
    span: float = 0.2,
) -> Mapping[str, float]:
    """Densities fall by equal steps along the depth; `span` lies between those of the first and the last group.

    density_i = c - span i / (n - 1), i = 0 to n - 1 in the order of the groups, c such that the mean over all units is
    `density`; clipped to [0, 1]. `span` is at most the density, so that no layer loses all. The paper speaks of
    sparsities, of transformer layers of equal size, and of the step beta = span / (n - 1), which it finds by a search.

    Source: Huang et al. 2025, arXiv:2502.14770 (ATP).
    """
    steps = torch.arange(len(groups), dtype=torch.float64) / max(1, len(groups) - 1)
    return _shifted(groups, -min(span, density) * steps, density)


def _raw(groups: Groups, group: Group) -> float:
    shapes = _shapes(groups, group)
    return sum(map(sum, shapes)) / sum(map(prod, shapes))


def _shapes(groups: Groups, group: Group) -> list[tuple[int, ...]]:
    """Of the weights that a group's units are made by; of all it owns, where it is made by no weight."""
    if group.grid is not None:
        return [group.grid.shape]
    made, owned = (
        [tuple(groups.graph.state[m.state].shape) for m in members] for members in (group.producers, group.members)
    )
    return [shape for shape in made if len(shape) > 1] or owned


def _outliers(scores: Tensor, size: int, times: float) -> float:
    return int((scores > times * (scores.double().sum() / size).to(scores.dtype)).sum()) / size


def _shifted(groups: Groups, shares: Tensor, density: float) -> Mapping[str, float]:
    """Shares in [0, 1], all shifted alike, whose mean over all units is `density`."""
    sizes = torch.tensor([group.size for group in groups], dtype=torch.float64)
    bends = torch.cat([-shares, 1 - shares]).sort().values  # shifts; from one to the next the mean rises in a line
    means = (shares + bends[:, None]).clamp(0, 1) @ (sizes / sizes.sum())
    above = int(torch.searchsorted(means, density).clamp(1, len(means) - 1))
    part = (density - means[above - 1]) / (means[above] - means[above - 1]).clamp(min=1e-300)
    shift = bends[above - 1] + part.clamp(0, 1) * (bends[above] - bends[above - 1])
    return {g.name: float(s) for g, s in zip(groups, (shares + shift).clamp(0, 1), strict=True)}
