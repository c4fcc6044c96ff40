"""`fold_constants`: what removed units would go on adding moves into biases, so that nothing is lost with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from prunus.apply.compare import call, error_between, native_bound
from prunus.apply.constants import Constants, Moved, Refused
from prunus.apply.redraw import redraw_inputs
from prunus.apply.shrink import shrink
from prunus.apply.zeroed import zero_removed
from prunus.errors import PlanError, ProofError
from prunus.graph.private import private_copy, state_of, unwrap
from prunus.plan import Plan
from prunus.score import check_shapes


def fold_constants(model: nn.Module, plan: Plan, *, drop: str | Sequence[str] = ()) -> nn.Module:
    """A copy of the model whose biases hold what the units that `plan` removes add as constants.

    Such a unit computes the same for every input: its filter is zero, but a bias or the shift of its norm goes on.
    Where y = W x + b reads a constant c, b takes W c and that column of W becomes zero; without a bias, the running
    mean of the batch norm that follows takes -W c. So the copy, of the class and shapes of `model`, computes in eval
    mode what `model` computes, and so does `shrink(copy, plan)`, which is checked at the model's own precision. What is
    constant is found by running the examples, and inputs drawn anew, in float64.

    Raises `PlanError` where a constant cannot move: a convolution that pads with zeros sees none of it at the border,
    a layer may have neither bias nor batch norm, or the unit may not be constant at all. Groups that match a glob of
    `drop` lose what cannot move, with a warning. `ProofError` when the smaller copy does not compute the same.

    >>> import torch, prunus
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> net[0].weight.data[:4] = 0  # their biases go on
    >>> x = torch.randn(2, 4)
    >>> plan = prunus.plan_from_zeros(net, prunus.trace(net, x))
    >>> small = prunus.shrink(prunus.fold_constants(net, plan), plan)
    >>> small[0].out_features, torch.allclose(small(x), net(x), atol=1e-6)
    (4, True)
    """
    model = unwrap(model)
    _refuse_plan(plan)
    check_shapes(model, plan.groups)
    patterns = [drop] if isinstance(drop, str) else list(drop)
    examples = list(plan.graph.examples)
    found = Constants(plan, state_of(model).tensors, lambda g: any(g.matches(p) for p in patterns))
    results = found.find([*examples, redraw_inputs(plan.graph.inputs)])[: len(examples)]
    if found.undropped:
        raise PlanError(_said(found.undropped))
    if found.refused:
        warnings.warn(f"Constants were lost. {_list(found.refused.values())}", stacklevel=2)
    folded = private_copy(model, share=False)
    _add(state_of(folded).tensors, found.moved)
    zero_removed(folded, plan.graph, plan.left, plan.groups.alive)
    _check(model, folded, plan, results if found.refused else None)
    return folded


def _refuse_plan(plan: Plan) -> None:
    if plan.groups.laid:
        raise PlanError(
            f"A plan over {plan.groups.pattern} makes zeros within tensors: nothing is removed that could be constant. "
            "Plan with Channel()."
        )
    if plan.graph.depends:
        raise PlanError(
            f"The path of this model depends on values ({plan.graph.depends}), so that what is constant on one path "
            "need not be on another. Use plan_from_zeros(..., constants=False), which keeps such units."
        )


def _add(state: Mapping[str, Tensor], moved: Mapping[str, Moved]) -> None:
    """Each state takes its constant once, however many operations add it."""
    for one in {each.home.state: each for each in moved.values()}.values():
        tensor = state[one.home.state].detach()
        tensor.copy_(tensor.double() + one.home.sign * one.amount)


def _check(model: nn.Module, folded: nn.Module, plan: Plan, results: list[list[Tensor]] | None) -> None:
    """The smaller copy against the model itself, or against what the model computes without the constants lost."""
    small = shrink(folded, plan, verify=False)
    for index, example in enumerate(plan.graph.examples):
        expected = call(model, example, plan.graph) if results is None else results[index]
        error = error_between(expected, call(small, example, plan.graph))
        if error > native_bound(small):
            raise ProofError(
                f"After its constants were folded, the smaller model is off by {error:.1e} on example {index}, where "
                f"{native_bound(small):.0e} is rounding at its precision. Most likely an operation is misread: leave "
                "groups out one by one to find which, and please report the model."
            )


def _said(refused: list[Refused]) -> str:
    names = list(dict.fromkeys(g.name for each in refused for g in each.groups))
    return (
        f"Not every constant that this plan removes can move into a bias. {_list(refused)} Keep these units with "
        f"plan_from_zeros(..., constants=False) or groups.skip({', '.join(map(repr, names))}), or pass drop={names!r} "
        "to lose what cannot move."
    )


def _list(refused: Iterable[Refused]) -> str:
    return " ".join(f"{each}." for each in refused)
