"""Cut a model whose path depends on values: its own class only, for a captured path stands for one input alone.

Up to the first operation that reads values, the module must compute what the graph computes. Beyond it, it must
compute what the user's module computes with the removed units zeroed, on several inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from prunus.apply.build import cut_state
from prunus.apply.compare import REFUSALS, call, error_between, native_bound
from prunus.apply.precision import ACCEPTED, Precision
from prunus.apply.redraw import redraw_inputs
from prunus.apply.surgery import candidates
from prunus.apply.zeroed import zeroed
from prunus.errors import ProofError, TraceError
from prunus.graph.axes import Atom
from prunus.graph.capture import annotate_modules, capture
from prunus.graph.fit import fit, fit_constants
from prunus.graph.graph import Graph
from prunus.graph.interpret import Outside, execute
from prunus.graph.nest import input_tensors
from prunus.graph.node import Node
from prunus.graph.private import adopt_plain_tensors, private_copy, state_of
from prunus.graph.program import Program
from prunus.plan import Plan
from prunus.types import Inputs

EXAMPLES = 3
"""So many inputs at least are compared beyond it, as values choose the path."""


def cut_by_values(model: nn.Module, plan: Plan) -> nn.Module:
    """The first cut copy of the user's class whose start computes what the graph computes.

    Raises `ProofError` where there is none: no graph can take its place.
    """
    state = state_of(model).tensors
    cut = cut_state(plan.graph, state, plan.left, plan.groups.alive)
    own = {name: t.detach().clone().requires_grad_(state[name].requires_grad) for name, t in cut.items()}
    for copy in candidates(plan.graph, model, own, plan.left, plan.groups.alive):
        if start_error(copy, plan) <= native_bound(copy):
            return copy
    raise ProofError(
        f"No {plan.graph.model_class} of the widths that stay could be made that starts as its graph does, and as "
        f"{plan.graph.depends}, the graph cannot take its place. Most likely a size is computed in the model's code: "
        "leave out the groups of that module with skip=."
    )


def start_error(small: nn.Module, plan: Plan) -> float:
    """How far a module is from the graph, up to the first operation that reads values, at its own dtype."""
    graph = plan.graph
    mine = private_copy(small)
    adopt_plain_tensors(mine)
    annotate_modules(mine)
    state = state_of(mine)
    names = list(graph.eval.program.spec.get("dict", {})) or None
    try:
        captured = capture(mine, state, graph.inputs, training=False, outputs=names)
        program = fit(graph, graph.eval, plan.left)
        started = _same_start(captured.program, program)
    except (TraceError, *REFUSALS):
        return float("inf")
    if started is None:
        return float("inf")
    inputs = input_tensors(graph.inputs)
    with torch.no_grad():
        found = execute(started, Outside(lambda n: state.tensors[n].detach(), captured.constants, inputs))
        constants = fit_constants(graph, plan.left)
        expected = execute(program, Outside(lambda n: state.tensors[n].detach(), constants, inputs))
    return error_between(expected, found)


def _same_start(program: Program, start: Program) -> Program | None:
    """As much of `program` as `start` holds, with the same results; None where its operations are others."""
    wanted, given = _operations(start), _operations(program)[: len(_operations(start))]
    if [node.op for node in wanted] != [node.op for node in given]:
        return None
    names = {a.name: b.name for a, b in zip(wanted, given, strict=True)}
    nodes = program.nodes[: program.nodes.index(given[-1]) + 1] if given else ()
    return replace(program, nodes=nodes, outputs=tuple(names[name] for name in start.outputs))


def _operations(program: Program) -> list[Node]:
    return [node for node in program.nodes if node.op not in ("state", "constant", "input")]


def zeroed_error(model: nn.Module, small: nn.Module, plan: Plan) -> tuple[float, float]:
    """How far `small` is from the zeroed `model` on several inputs, and the error to accept.

    In float64 where both run in it. Inexact groups, for which zeroing is not removing, stay whole in both.

    Raises `ProofError` where an inexact group is read after the path has begun to depend on values.
    """
    exact = _exact_part(plan)
    if exact is not plan:
        small = cut_by_values(model, exact)
    plain = zeroed(model, plan.graph, exact.left, plan.groups.alive)
    with suppress(*REFUSALS):
        wide, narrow = (private_copy(m, share=False).double() for m in (plain, small))
        return max(_gaps(wide, narrow, plan.graph, Precision().inputs)), ACCEPTED
    return max(_gaps(plain, small, plan.graph, Inputs.of)), native_bound(model)


def apart_by_values(model: nn.Module, plan: Plan, other: Plan) -> float:
    """How far a module cut by another plan is from the zeroed `model`: a check that cannot see that proves nothing."""
    return zeroed_error(model, cut_by_values(model, other), plan)[0]


def unmoved_by_values(model: nn.Module, plan: Plan, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the groups whose removed units, zeroed in the user's module, move none of its results."""

    def moves(name: str) -> bool:
        leaf = plan.groups[name].leaf
        without = zeroed(model, plan.graph, {leaf: plan.left[leaf]}, plan.groups.alive)
        return any(_gaps(model, without, plan.graph, Inputs.of))

    return tuple(name for name in names if not moves(name))


def _gaps(whole: nn.Module, cut: nn.Module, graph: Graph, cast: Callable[[Inputs], Inputs]) -> Iterator[float]:
    drawn = (redraw_inputs(graph.inputs, seed) for seed in range(1, EXAMPLES))
    for example in (*graph.examples, *drawn):
        inputs = cast(example)
        yield error_between(call(whole, inputs, graph), call(cut, inputs, graph))


def _exact_part(plan: Plan) -> Plan:
    """The plan without what it removes of inexact groups; the same plan where it removes nothing of these."""
    inexact = {g.name: g for g in plan.groups if g.name in plan.keep and not g.exact}
    cut = [g for g in inexact.values() if bool((plan.groups.left(g) & ~plan.left[g.leaf]).any())]
    if not cut:
        return plan
    late = _read_late(plan.graph)
    for g in cut:
        if g.leaf in late:
            raise ProofError(
                f"The group {g.name!r} is inexact ({g.why}) and read where the path depends on values, as "
                f"{plan.graph.depends}; there it cannot be proven. Leave it out with skip={g.name!r}."
            )
    return replace(plan, keep={n: plan.groups.left(inexact[n]) if n in inexact else m for n, m in plan.keep.items()})


def _read_late(graph: Graph) -> set[Atom]:
    """What operations read after the path has begun to depend on values."""
    early = {node.name for node in graph.eval.proven.nodes}
    refs = {r.name for n in graph.eval.program.nodes if n.name not in early for r in n.refs()}
    return {leaf for name in refs for axes in graph.eval.inferred.axes[name] for axis in axes for leaf in axis.leaves()}
