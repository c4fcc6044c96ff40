"""What a criterion needs, said at the door: before hours of training, not after them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from torch import Tensor

from prunus.errors import CriterionError
from prunus.patterns import Channel, Pattern
from prunus.stats import Stats
from prunus.stats.flow import NO_INPUTS
from prunus.stats.stats import missing
from prunus.types import Batch, Loss

Criterion: TypeAlias = Callable[[Stats], Mapping[str, Tensor]]
Need: TypeAlias = Literal["gradients", "activations", "graph", "units"]
C = TypeVar("C", bound=Callable[..., Any])


def needing(*needs: Need) -> Callable[[C], C]:
    """Mark a criterion of your own, so that what it lacks is said before any work is done.

    `gradients` and `activations` need `data` and `loss`; `graph` needs a traced model; `units` says that there is one
    value a unit, so that single weights cannot be ranked.

    >>> @needing("gradients")
    ... def steep(stats):
    ...     return {name: g.abs() for name, g in stats.grads.items()}
    """
    unknown = set(needs) - set(get_args(Need))
    if unknown:
        raise CriterionError(f"Unknown need {unknown.pop()!r}; expected of {', '.join(get_args(Need))}.")

    def marked(criterion: C) -> C:
        vars(criterion)["needs"] = frozenset(needs)
        return criterion

    return marked


def needs_of(criterion: Any) -> frozenset[Need]:
    """What a criterion was marked with; nothing for one that was not."""
    return getattr(criterion, "needs", frozenset[Need]())


def check_needs(
    criterion: Any, pattern: Pattern, data: Iterable[Batch] | None, loss: Loss | None, *, traced: bool
) -> None:
    """Raise `CriterionError` where what the criterion says it needs is not there."""
    needs = needs_of(criterion)
    label = getattr(criterion, "__name__", type(criterion).__name__)
    if "units" in needs and not isinstance(pattern, Channel):
        raise CriterionError(
            f"{label} has one value for each unit, so that it cannot rank the weights within one; {pattern} "
            "needs a value for every element. Use it with Channel, or take another criterion, such as magnitude."
        )
    for what in ("gradients", "activations"):
        if what in needs and (data is None or loss is None):
            raise CriterionError(f"{label}: {missing(what)}")
    if "graph" in needs and not traced:
        raise CriterionError(f"{label}: {NO_INPUTS}")
