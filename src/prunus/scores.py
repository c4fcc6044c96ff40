"""What can be done with scores before they are allocated: bring groups to one scale, and combine criteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from prunus.criteria.weight import share_of_larger
from prunus.errors import CriterionError
from prunus.score import Scores

By: TypeAlias = Literal["mean", "max", "sum", "l2", "standard", "rank"]


def normalized(scores: Scores, by: By = "mean") -> Scores:
    """Each group on its own, so that groups of unlike scale compare under `scope="global"`.

    `mean`, `max`, `sum`, `l2`: divided by that of the absolute values (Molchanov et al. 2017, section 2.2, uses l2);
    `standard`: mean 0 and deviation 1; `rank`: evenly from 0 (least) to 1, ties at their mean. A group of which that
    is zero stays as it is, at zero.

    >>> normalized({"conv": torch.tensor([1.0, 3.0])})["conv"]
    tensor([0.5000, 1.5000])
    """
    if by not in get_args(By):
        raise CriterionError(f"Unknown by={by!r}; expected one of {', '.join(get_args(By))}.")
    return {name: _scaled(values, by) for name, values in scores.items()}


def weighted_sum(*terms: tuple[float, Scores]) -> Scores:
    """Σ weight · scores, unit by unit; bring them to one scale first, see `normalized`.

    >>> weighted_sum((0.5, {"conv": torch.tensor([1.0, 3.0])}), (2.0, {"conv": torch.tensor([1.0, 0.0])}))["conv"]
    tensor([2.5000, 1.5000])
    """
    _check_alike([scores for _, scores in terms])
    first = terms[0][1]
    return {name: torch.stack([weight * scores[name] for weight, scores in terms]).sum(0) for name in first}


def rank_mean(*scores: Scores) -> Scores:
    """The mean rank of each unit among all units of all groups, from 0 (least) to 1: criteria of any scale combine.

    >>> one, other = {"conv": torch.tensor([1.0, 3.0, 2.0])}, {"conv": torch.tensor([0.1, 0.2, 0.3])}
    >>> rank_mean(one, other)["conv"]
    tensor([0.0000, 0.7500, 0.7500], dtype=torch.float64)
    """
    _check_alike(scores)
    sizes = [values.numel() for values in scores[0].values()]
    ranks = [_ranks(torch.cat([each[name].double() for name in scores[0]])) for each in scores]
    mean = torch.stack(ranks).mean(0)
    return dict(zip(scores[0], mean.split(sizes), strict=True))


def lamp(scores: Scores) -> Scores:
    """Each score over the sum of those of its group that are not smaller; the best unit of each group scores 1.

    With scope="global" the density of each layer follows. Of squares of weights this is `criteria.lamp`; of squared
    norms it is the same for channels.

    >>> lamp({"conv": torch.tensor([1.0, 4.0, 0.0, 5.0])})["conv"]
    tensor([0.1000, 0.4444, 0.0000, 1.0000], dtype=torch.float64)

    Raises `CriterionError` for negative scores.

    Source: Lee et al. 2021, arXiv:2010.07611, the LAMP score.
    """
    for name, values in scores.items():
        if bool((values < 0).any()):
            raise CriterionError(
                f"lamp was given negative scores of {name!r}; expected squares, such as those of "
                "prunus.criteria.magnitude_l2."
            )
    return {name: share_of_larger(values.double()) for name, values in scores.items()}


def _scaled(values: Tensor, by: By) -> Tensor:
    if by == "rank":
        return _ranks(values.double())
    if by == "standard":
        deviation = values.std(correction=0)
        return (values - values.mean()) / torch.where(deviation > 0, deviation, 1.0)
    size = values.abs()
    scale = {"mean": size.mean, "max": size.amax, "sum": size.sum, "l2": size.norm}[by]()
    return values / torch.where(scale > 0, scale, 1.0)


def _ranks(values: Tensor) -> Tensor:
    """0 to 1; equal values share the mean of their places."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return ((last - counts + last - 1) / 2)[which] / max(1, values.numel() - 1)


def _check_alike(scores: Sequence[Mapping[str, Tensor]]) -> None:
    if not scores:
        raise CriterionError("There are no scores to combine; expected those of one criterion at least.")
    shapes = [{name: tuple(values.shape) for name, values in each.items()} for each in scores]
    for each in shapes[1:]:
        wrong = sorted(name for name in {*each, *shapes[0]} if each.get(name) != shapes[0].get(name))
        if wrong:
            raise CriterionError(
                f"Scores of {wrong[0]!r} are of shape {shapes[0].get(wrong[0])} and {each.get(wrong[0])}; expected "
                "scores of the same groups."
            )
