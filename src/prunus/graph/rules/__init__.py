"""The table of op rules: what each operation says of the axes of its arguments and results.

A rule is a function `rule(see, **arguments) -> axes of the result`. Names are ATen names without the namespace and
the in-place underscore; `name.overload` is looked up first. A rule that returns None has met a form it does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunus.graph.node import plain
from prunus.graph.rules import contract, create, normalize, pointwise, position, recurrent, route, shape, special

RULES: dict[str, Callable[..., Any]] = {
    **pointwise.RULES,
    **contract.RULES,
    **normalize.RULES,
    **shape.RULES,
    **position.RULES,
    **create.RULES,
    **route.RULES,
    **special.RULES,
    **recurrent.RULES,
}


def find_rule(op: str) -> Callable[..., Any] | None:
    """The rule of `aten.relu_.default` is that of `relu`; operations of other libraries have theirs by their full name.

    >>> find_rule("aten.relu_.default") is find_rule("aten.gelu.default")
    True
    """
    namespace, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    if namespace != "aten":
        return RULES.get(f"{namespace}.{name}")
    return RULES.get(f"{plain(op)}.{overload}") or RULES.get(plain(op))


def moves(op: str) -> bool:
    """Are indices given to this operation still indices in its result?"""
    return plain(op) in route.MOVES


def takes_indices(op: str, argument: str) -> bool:
    """Does the rule of this operation say itself what becomes of indices given as this argument?"""
    return argument in route.TAKES.get(plain(op), ())
