"""`shrink`: a new, really smaller model from a plan, proven before it is returned."""

from __future__ import annotations

from torch import nn

from prunus.apply.build import graph_model
from prunus.apply.compare import agrees
from prunus.apply.surgery import candidates
from prunus.apply.verify import verify as prove
from prunus.errors import TraceError
from prunus.graph.capture import Program, capture
from prunus.graph.interpret import GraphModel
from prunus.graph.private import adopt_plain_tensors, private_copy, state_of, unwrap
from prunus.graph.trace import Graph
from prunus.plan import Plan
from prunus.score import check_shapes


def shrink(model: nn.Module, plan: Plan, *, verify: bool = True) -> nn.Module:
    """A new model without the units that `plan` removes; `model` is left as it is.

    The result is a copy of the user's own class where that can be cut and agrees with the graph, else a `GraphModel`
    with the same state names. With `verify` it is proven equal to its reference first.

    Raises `PlanError` when the model is not at the widths the plan starts from, `ProofError` when the smaller model
    cannot be proven.
    """
    model = unwrap(model)
    check_shapes(model, plan.groups)
    made = graph_model(plan.graph, model, plan.left, plan.groups.alive)
    small = None if isinstance(model, GraphModel) else _cut_class(model, made, plan)
    small = made if small is None else small
    if verify:
        prove(model, small, plan)
    return small


def _cut_class(model: nn.Module, made: GraphModel, plan: Plan) -> nn.Module | None:
    """The first cut copy of the user's class that computes what the graph computes, and trains as it does."""
    state = state_of(made).tensors
    for copy in candidates(plan.graph, model, state, plan.left, plan.groups.alive):
        if agrees(copy, made, plan.graph) and _trains_alike(copy, made, plan.graph):
            return copy  # each module in training or eval mode as the original's: frozen norms stay frozen
    return None


def _trains_alike(copy: nn.Module, made: GraphModel, graph: Graph) -> bool:
    """Captured in training mode, does the copy run the same operations as the graph?"""
    program = made.programs[1]
    if program is None:
        return True
    mine = private_copy(copy)
    adopt_plain_tensors(mine)
    try:
        again = capture(mine, state_of(mine), graph.inputs, training=True, outputs=None).program
    except TraceError:
        return False
    return _operations(again) == _operations(program)


def _operations(program: Program) -> list[str]:
    return [node.op for node in program.nodes if "." in node.op]
