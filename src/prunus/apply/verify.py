"""`verify`: is the smaller model the original without the removed units? Checked on the model at hand.

The reference is the full-width graph in which removed units count as zero wherever they are added up. It is compared
in float64 with the user's weights and with all weights redrawn; where zeroing parameters is the same as removing,
the user's untouched module with zeroed parameters is a second, independent reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.apply.build import cut_one
from prunus.apply.redraw import redraw_inputs, redrawer
from prunus.errors import ProofError
from prunus.graph.fit import fit, fit_constants, lifted, without_draws
from prunus.graph.interpret import GraphModel, Outside, execute
from prunus.graph.nest import input_tensors, take_outputs, with_tensors
from prunus.graph.private import private_copy, state_of, unwrap
from prunus.graph.reference import Reference
from prunus.graph.trace import Graph, Mode
from prunus.graph.width import Keep, mask_of, positions
from prunus.plan import Plan
from prunus.types import Inputs

ACCEPTED = 1e-9
"""Relative error accepted in float64."""
CONTROL = 1000.0
"""A wrong model must be off by at least this many times the error accepted."""
_NATIVE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}

Lookup = Callable[[str], Tensor]


@dataclass(frozen=True)
class Proof:
    """Relative error of each check; `accepted` the bound of each; `control` the error of a model cut one unit off.

    Checks: `user` and `redrawn` weights against the reference in float64, `train` mode likewise, `zeroed` (the user's
    module with zeroed parameters, at another batch size; only for exact groups), `module` (the returned module against
    its graph at its own dtype). `unwitnessed` names groups whose removal moved nothing even with redrawn weights.
    """

    errors: Mapping[str, float]
    accepted: Mapping[str, float]
    control: float
    unwitnessed: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"{name:<8} {error:.1e} (accepted {self.accepted[name]:.0e})" for name, error in self.errors.items()]
        lines.append(f"control  {self.control:.1e} (a model cut one unit off)")
        return "\n".join([*lines, *(f"not witnessed: {name}" for name in self.unwitnessed)])


def verify(model: nn.Module, small: nn.Module, plan: Plan) -> Proof:
    """Prove that `small` is `model` without the units `plan` removes. Raises `ProofError` naming the failed check.

    `small` must have the weights the cut gave it: prove before recovery. At most the float64 copy of one tensor is
    held beyond the activations; neither model is changed.
    """
    model, small = unwrap(model), unwrap(small)
    check = _Check(model, plan)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        check.same_state(small)
        for example in plan.graph.examples:
            check.compare("user", plan.graph.eval, example, check.user, _doubled(small))
        check.redrawn()
        check.zeroed(small)
        check.module(small)
        control = check.shifted()
    return Proof(check.errors, check.accepted, control, check.unwitnessed())


def agrees(copy: nn.Module, made: GraphModel, graph: Graph) -> bool:
    """Does a cut copy of the user's class compute what the graph computes, at its own dtype, on every example?"""
    try:
        return all(_native_error(copy, made, example, graph) <= native_bound(copy) for example in graph.examples)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError, KeyError):
        return False


def native_bound(model: nn.Module) -> float:
    dtypes = [p.dtype for p in model.parameters() if p.dtype in _NATIVE]
    return max((_NATIVE[d] for d in dtypes), default=_NATIVE[torch.float32])


def _native_error(copy: nn.Module, made: GraphModel, example: Inputs, graph: Graph) -> float:
    outputs = [_call(m, example, graph) for m in (copy, made)]
    return error_between(*outputs)


def _call(model: nn.Module, example: Inputs, graph: Graph) -> list[Tensor]:
    """The results of a module in eval mode on private inputs, its mode and buffers left as they were."""
    mine = private_copy(model).eval()
    names = list(graph.eval.program.spec.get("dict", {})) or None
    tensors = {path: t.clone() for path, t in input_tensors(example).items()}
    call = with_tensors(example, tensors)
    with torch.no_grad():
        return take_outputs(mine(*call.args, **call.kwargs), names)[0]


def error_between(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference over the largest value, worst over the results; infinite where shapes differ."""
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel() == 0 or not a.dtype.is_floating_point:
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
            continue
        a, b = a.double(), b.double()
        scale = float(a.abs().max().clamp(min=1e-30))
        error = float((a - b).abs().max()) / scale
        worst = max(worst, error if error == error else float("inf"))
    return worst


def _doubled(module: nn.Module) -> Lookup:
    tensors = state_of(module).tensors
    return lambda name: _double(tensors[name])


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64) if tensor.dtype.is_floating_point else tensor.detach().clone()


class _Check:
    """One proof under way: the worst error of each check so far."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.model, self.plan, self.graph = model, plan, plan.graph
        self.keep: Keep = plan.left
        self.alive: Keep = plan.groups.alive
        self.state = state_of(model).tensors
        self.user: Lookup = lambda name: _double(self.state[name])
        self.drawn: Lookup = redrawer(self.graph, self.state)
        self.errors: dict[str, float] = {}
        self.accepted: dict[str, float] = {}
        self.expected: list[Tensor] = []
        """The results of the reference in eval mode with redrawn weights."""

    def note(self, check: str, error: float, accepted: float) -> None:
        self.errors[check] = max(error, self.errors.get(check, 0.0))
        self.accepted[check] = accepted
        if not error <= accepted:
            raise ProofError(
                f"Check {check!r} failed: the smaller model differs from its reference by {error:.1e} (relative), "
                f"accepted is {accepted:.0e}. Groups cut: {', '.join(list(self.plan.keep)[:6])}. This is a defect of "
                "prunus or an operation it misreads; skip the groups named and please report the model."
            )

    def same_state(self, small: nn.Module) -> None:
        """Every tensor of the smaller model is the cut tensor, bit for bit."""
        found = state_of(small).tensors
        for name, tensor in self.state.items():
            wanted = cut_one(self.graph, name, tensor, self.keep, self.alive) if name in self.graph.state else tensor
            if name in found and not _same(found[name], wanted):
                raise ProofError(
                    f"{name!r} of the smaller model is not what the plan cuts it to: found {tuple(found[name].shape)}, "
                    f"expected {tuple(wanted.shape)} with the original's values. Verify right after shrink, before training."
                )

    def compare(self, check: str, mode: Mode, example: Inputs, full: Lookup, cut: Lookup) -> None:
        self.note(check, error_between(self.reference(mode, example, full), self.small(mode, example, cut)), ACCEPTED)

    def reference(self, mode: Mode, example: Inputs, state: Lookup) -> list[Tensor]:
        program = without_draws(lifted(fit(self.graph, mode, self.alive)))
        outside = self._outside(example, state, self.alive)
        return execute(program, outside, Reference(mode, self.keep, self.alive))

    def small(self, mode: Mode, example: Inputs, state: Lookup, keep: Keep | None = None) -> list[Tensor]:
        keep = self.keep if keep is None else keep
        program = without_draws(lifted(fit(self.graph, mode, keep)))
        return execute(program, self._outside(example, state, keep))

    def _outside(self, example: Inputs, state: Lookup, keep: Keep) -> Outside:
        constants = {name: _double(t) for name, t in fit_constants(self.graph, keep).items()}
        return Outside(state, constants, {path: _double(t) for path, t in input_tensors(example).items()})

    def cut(self, state: Lookup, keep: Keep) -> Lookup:
        return lambda name: cut_one(self.graph, name, state(name), keep, self.alive)

    def redrawn(self) -> None:
        """All floating state and inputs drawn anew, in eval and train mode: default weights hide wrong indices."""
        inputs = redraw_inputs(self.graph.inputs)
        for check, mode in zip(("redrawn", "train"), self.graph.modes, strict=False):
            expected = self.reference(mode, inputs, self.drawn)
            self.expected = self.expected or expected
            found = self.small(mode, inputs, self.cut(self.drawn, self.keep))
            self.note(check, error_between(expected, found), ACCEPTED)

    def zeroed(self, small: nn.Module) -> None:
        """The user's module with the parameters of removed units zeroed, at another batch size."""
        removed = [self.plan.groups[name] for name, mask in self.plan.keep.items() if not bool(mask.all())]
        if isinstance(self.model, GraphModel) or not all(group.exact for group in removed):
            return
        example = another_batch(self.graph)
        zeroed = private_copy(self.model, share=False).double().eval()
        zero_removed(zeroed, self.graph, self.keep, self.alive)
        tensors = {path: _double(t) for path, t in input_tensors(example).items()}
        expected = _call(zeroed, with_tensors(example, tensors), self.graph)
        casts = lifted(self.graph.eval.program).nodes != self.graph.eval.program.nodes
        self.note("zeroed", error_between(expected, self.small(self.graph.eval, example, _doubled(small))), 1e-4 if casts else ACCEPTED)

    def module(self, small: nn.Module) -> None:
        """The returned module against its graph, at its own dtype."""
        if isinstance(small, GraphModel):
            return
        state = state_of(small).tensors
        for example in self.graph.examples:
            program = fit(self.graph, self.graph.eval, self.keep)
            outside = Outside(lambda n: state[n].detach(), fit_constants(self.graph, self.keep), input_tensors(example))
            self.note("module", error_between(execute(program, outside), _call(small, example, self.graph)), native_bound(small))

    def shifted(self) -> float:
        """The control: the same cut, one unit off, must be far from the reference."""
        keep = dict(self.keep)
        removed = [self.plan.groups[n] for n, mask in self.plan.keep.items() if not bool(mask.all())]
        for group in removed:
            left = self.plan.groups.left(group)
            rolled = torch.zeros_like(left)
            rolled[left] = keep[group.leaf][left].roll(1)
            keep[group.leaf] = rolled
        if not removed:
            return float("inf")
        inputs = redraw_inputs(self.graph.inputs)
        wrong = self.small(self.graph.eval, inputs, self.cut(self.drawn, keep), keep)
        error = error_between(self.expected, wrong)
        if error < CONTROL * ACCEPTED:
            raise ProofError(f"The check is blind here: a model cut one unit off differs by only {error:.1e} from the reference.")
        return error

    def unwitnessed(self) -> tuple[str, ...]:
        """Groups whose removed units do not move the output to first order, even with redrawn weights."""
        removed = {n: mask for n, mask in self.plan.keep.items() if not bool((mask | ~self.plan.groups.left(self.plan.groups[n])).all())}
        leaves = {name: _witness_state(self.plan, name) for name in removed}
        state: dict[str, Tensor] = {}

        def look(name: str) -> Tensor:
            if name not in state:
                state[name] = self.drawn(name).requires_grad_(name in leaves.values())
            return state[name]

        inputs = redraw_inputs(self.graph.inputs)
        program = without_draws(lifted(fit(self.graph, self.graph.eval, self.alive)))
        with torch.enable_grad():
            results = execute(program, self._outside(inputs, look, self.alive))
            draw = torch.Generator().manual_seed(1)
            total = sum((r * torch.randn(r.shape, generator=draw, dtype=r.dtype)).sum() for r in results if r.is_floating_point())
        wanted = [state[leaves[name]] for name in removed if leaves[name] in state]
        if not isinstance(total, Tensor) or not total.requires_grad or not wanted:
            return tuple(removed)
        grads = dict(zip(map(id, wanted), torch.autograd.grad(total, wanted, allow_unused=True), strict=True))
        return tuple(n for n in removed if not _moves(self.plan, n, leaves[n], state, grads))


def _witness_state(plan: Plan, name: str) -> str:
    """The parameter a group is witnessed by: the first that makes its units."""
    group = plan.groups[name]
    made = [m.state for m in (*group.producers, *group.members) if m.state in plan.graph.parameters]
    return made[0]


def _moves(plan: Plan, name: str, state_name: str, state: Mapping[str, Tensor], grads: Mapping[int, Tensor | None]) -> bool:
    tensor = state.get(state_name)
    grad = None if tensor is None else grads.get(id(tensor))
    if tensor is None or grad is None:
        return False
    group = plan.groups[name]
    change = (tensor.detach() * grad).abs()
    for member in group.members:
        if member.state == state_name:
            rows = change.movedim(member.dim, 0).reshape(change.shape[member.dim], -1).sum(1)
            units = rows[plan.groups.index(group, member)].sum(1)
            if bool((units[~plan.keep[name][plan.groups.left(group)]] > 0).any()):
                return True
    return False


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def zero_removed(model: nn.Module, graph: Graph, keep: Keep, alive: Keep) -> None:
    """Zero, in place, every floating state slice of the units that go."""
    state: dict[str, Any] = state_of(model).tensors
    for name, axes in graph.state_axes.items():
        if not state[name].dtype.is_floating_point:
            continue
        for dim, axis in enumerate(axes):
            gone = ~mask_of(axis, keep)[mask_of(axis, alive)]
            if bool(gone.any()):
                state[name].detach().index_fill_(dim, gone.nonzero().flatten().to(state[name].device), 0)


def another_batch(graph: Graph) -> Inputs:
    """The traced inputs with their first sample once more, where the batch is free."""
    batch = {leaf for leaf, (_, dim) in graph.leaves.moving.items() if dim == 0}
    tensors = input_tensors(graph.inputs)
    if not batch or any(t.ndim == 0 for t in tensors.values()):
        return graph.inputs
    return with_tensors(graph.inputs, {p: torch.cat([t, t[:1]]) for p, t in tensors.items()})
