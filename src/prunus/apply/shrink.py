"""`shrink`: a new, really smaller model from a plan, proven before it is returned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.apply.build import graph_model
from prunus.apply.compare import REFUSALS, agrees, error_between, native_bound
from prunus.apply.dependent import cut_by_values
from prunus.apply.surgery import candidates
from prunus.apply.verify import verify as prove
from prunus.apply.widths import say_widths
from prunus.errors import PlanError, TraceError
from prunus.graph.capture import capture
from prunus.graph.fit import fit_constants, without_draws
from prunus.graph.interpret import GraphModel, Outside, execute
from prunus.graph.nest import input_tensors
from prunus.graph.private import adopt_plain_tensors, private_copy, state_of, unwrap
from prunus.graph.program import Program
from prunus.plan import Plan
from prunus.score import check_shapes
from prunus.types import Inputs, Precise


def shrink(model: nn.Module, plan: Plan, *, verify: bool | Precise = True) -> nn.Module:
    """A new model without the units that `plan` removes; `model` is left as it is.

    The result is a copy of the user's own class where that can be cut and agrees with the graph, else a `GraphModel`
    with the same state names. With `verify` it is proven equal to its reference first: in float64, or for `"native"`
    and models of more than 100 million parameters in float32.
    A configuration that the class is built from follows where it can say the new sizes: where layers that were alike
    are cut alike.

    Raises `PlanError` when the model is not at the widths the plan starts from or the plan is over units within
    tensors, `ProofError` when the smaller model cannot be proven.
    """
    model = unwrap(model)
    _refuse_zeros(plan)
    check_shapes(model, plan.groups)
    small = cut_by_values(model, plan) if plan.graph.depends else _cut(model, plan)
    if verify:
        prove(model, small, plan, precision=None if isinstance(verify, bool) else verify)
    return small


def _cut(model: nn.Module, plan: Plan) -> nn.Module:
    made = graph_model(plan.graph, model, plan.left, plan.groups.alive)
    small = None if isinstance(model, GraphModel) else _cut_class(model, made, plan)
    return made if small is None else small


def _refuse_zeros(plan: Plan) -> None:
    if plan.groups.laid:
        raise PlanError(
            f"A plan over {plan.groups.pattern} makes zeros within tensors, and nothing that could be cut out. Hold "
            "them with prunus.mask(model, plan), or plan with Channel() for a smaller model."
        )


def _cut_class(model: nn.Module, made: GraphModel, plan: Plan) -> nn.Module | None:
    """The first cut copy of the user's class that computes what the graph computes, and trains as it does."""
    state = state_of(made).tensors
    for copy in candidates(plan.graph, model, state, plan.left, plan.groups.alive):
        if agrees(copy, made, plan.graph) and _trains_alike(copy, made, plan):
            say_widths(model, copy, plan)
            return copy  # each module in training or eval mode as the original's: frozen norms stay frozen
    return None


def _trains_alike(copy: nn.Module, made: GraphModel, plan: Plan) -> bool:
    """In training mode, with random draws settled, does the copy compute what the graph computes?"""
    program = made.programs[1]
    if program is None:
        return True
    mine = private_copy(copy)
    adopt_plain_tensors(mine)
    names = list(program.spec.get("dict", {})) or None
    try:
        own = capture(mine, state_of(mine), plan.graph.inputs, training=True, outputs=names)
        found = _settled(own.program, state_of(mine).tensors, own.constants, plan.graph.inputs)
    except (TraceError, *REFUSALS):
        return False
    constants = fit_constants(plan.graph, plan.left)
    expected = _settled(program, state_of(made).tensors, constants, plan.graph.inputs)
    return error_between(expected, found) <= native_bound(copy)


def _settled(
    program: Program, state: Mapping[str, Tensor], constants: Mapping[str, Tensor], inputs: Inputs
) -> list[Tensor]:
    """The results of a program without random draws; state and inputs are left as they are."""
    tensors = {path: t.clone() for path, t in input_tensors(inputs).items()}
    outside = Outside(lambda name: state[name].detach().clone(), constants, tensors)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # draws that cannot be settled are at least the same
        return execute(without_draws(program), outside)
