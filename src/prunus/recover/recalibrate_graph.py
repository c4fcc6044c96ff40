"""Batch-norm statistics of a `GraphModel`, whose batch norms are operations and no modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prunus.graph.fit import with_argument
from prunus.graph.interpret import GraphModel
from prunus.graph.node import Node, Ref
from prunus.graph.program import Program
from prunus.graph.see import Place
from prunus.types import Batch


def average_statistics(model: GraphModel, batches: Iterable[Batch], call: Callable[[GraphModel, Batch], Any]) -> int:
    """Average the statistics of all batch norms over `batches`, in place; returns how many batches there were.

    Each batch norm runs on the batch's own statistics with momentum 1/k at the k-th batch, all else as in eval mode.
    """
    programs, training = model.programs, model.training
    old = {name: model.tensor(name).clone() for name in statistics_of(programs[0])}
    fed = 0
    try:
        with torch.no_grad():
            for batch in batches:
                fed += 1
                model.programs = (_averaging(programs[0], 1 / fed), programs[1])
                call(model.eval(), batch)
    except BaseException:
        put_back(model, old)
        raise
    finally:
        model.programs = programs
        model.train(training)
    return fed


def statistics_of(program: Program) -> list[str]:
    """The state names of running means and variances."""
    state = {node.name: node.args[0] for node in program.nodes if node.op == "state"}
    bound = [node.bound() for node in program.nodes if _is_norm(node)]
    refs = [b[key] for b in bound for key in ("running_mean", "running_var")]
    return [state[ref.name] for ref in refs if isinstance(ref, Ref) and ref.name in state]


def put_back(model: GraphModel, old: dict[str, Tensor]) -> None:
    for name, values in old.items():
        model.tensor(name).copy_(values)


def _averaging(program: Program, momentum: float) -> Program:
    nodes = [
        with_argument(with_argument(n, Place("training"), True), Place("momentum"), momentum) if _is_norm(n) else n
        for n in program.nodes
    ]
    return replace(program, nodes=tuple(nodes))


def _is_norm(node: Node) -> bool:
    return node.op == "aten.batch_norm.default"
