"""One proof under way: the reference, the smaller graph, and the worst error of each check so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunus.apply.build import cut_one
from prunus.apply.compare import REFUSALS, call, error_between, native_bound
from prunus.apply.dependent import apart_by_values, start_error, zeroed_error
from prunus.apply.precision import ACCEPTED, Lookup, Precision
from prunus.apply.redraw import redraw_inputs, redrawer
from prunus.apply.zeroed import another_batch, zeroed
from prunus.errors import ProofError
from prunus.graph.axes import Axes
from prunus.graph.fit import fit, fit_constants, lifted, without_draws
from prunus.graph.graph import Mode
from prunus.graph.groups import Group
from prunus.graph.interpret import GraphModel, Outside, execute
from prunus.graph.nest import input_tensors
from prunus.graph.private import private_copy, state_of
from prunus.graph.program import Program
from prunus.graph.reference import Reference
from prunus.graph.width import Keep, mask_of, touched
from prunus.plan import Plan
from prunus.types import Inputs

CONTROL = 1000.0
"""A wrong model must be off by at least this many times the error accepted."""
_DRAWS = 4
"""So many draws of all weights are tried until one sees a wrong model: in a tiny one all units may be dead."""
_MANY = 6
"""So many samples more are tried where training mode computes statistics of too few."""
_CAST = 1e-4
"""Relative error accepted where the user's module casts to float32 inside, which only our graph can lift."""


class Check:
    """Each method is one check; it notes its error and raises `ProofError` when that is too large."""

    def __init__(self, model: nn.Module, plan: Plan, precision: Precision) -> None:
        self.model, self.plan, self.graph = model, plan, plan.graph
        self.keep: Keep = plan.left
        self.alive: Keep = plan.groups.alive
        self.state = state_of(model).tensors
        self.precision, self.rounding = precision, precision.accepted
        self.drawn: Lookup = redrawer(self.graph, self.state, dtype=precision.dtype)
        self.errors: dict[str, float] = {}
        self.accepted: dict[str, float] = {}
        self.expected: list[Tensor] = []
        """The results of the reference in eval mode with redrawn weights."""

    @property
    def cut_groups(self) -> list[Group]:
        """The groups that lose units by this plan."""
        groups = [self.plan.groups[name] for name in self.plan.keep]
        return [g for g in groups if bool((self.plan.groups.left(g) & ~self.plan.keep[g.name]).any())]

    def state_is_cut(self, small: nn.Module) -> None:
        """Every tensor of the smaller model is the cut tensor, bit for bit."""
        found = state_of(small).tensors
        for name in self.graph.state:
            wanted = cut_one(self.graph, name, self.state[name], self.keep, self.alive)
            if name not in found or not _same(found[name], wanted):
                shape = tuple(found[name].shape) if name in found else "nothing"
                raise ProofError(
                    f"{name!r} of the smaller model is not what the plan cuts it to: found {shape}, expected "
                    f"{tuple(wanted.shape)} with the original's values. Verify right after shrink, before training."
                )

    def user(self, small: nn.Module) -> None:
        """With the user's weights, on every example."""
        for example in self.graph.examples:
            expected = self._reference(self.graph.eval, example, self.precision.state(self.state))
            found = self._small(self.graph.eval, example, self._cut_state(small))
            self._note("user", error_between(expected, found), self.rounding)

    def redrawn(self) -> None:
        """With all floating state and inputs drawn anew, in eval and train mode: default weights hide wrong indices."""
        self.expected, error = self._drawn_apart(self.graph.eval, self.graph.inputs)
        self._note("redrawn", error, self.rounding)
        if self.graph.train is None:
            return
        if not _alike(self.graph.eval.program, self.graph.train.program):
            _, error = self._drawn_apart(self.graph.train, self.graph.inputs)
        if error > self.rounding:  # statistics of two samples can be so ill-conditioned that rounding alone does this
            _, error = self._drawn_apart(self.graph.train, another_batch(self.graph, more=_MANY))
        self._note("train", error, self.rounding)

    def _drawn_apart(self, mode: Mode, example: Inputs) -> tuple[list[Tensor], float]:
        """With everything drawn anew: the results of the reference, and how far the smaller graph is from them."""
        inputs = redraw_inputs(example)
        expected = self._reference(mode, inputs, self.drawn)
        return expected, error_between(expected, self._small(mode, inputs, self._cut(self.keep)))

    def zeroed(self, small: nn.Module) -> None:
        """Against the user's module with the removed units zeroed, at another batch size; exact groups only."""
        if self.graph.depends:
            return self._note("zeroed", *zeroed_error(self.model, small, self.plan))
        if isinstance(self.model, GraphModel) or not all(group.exact for group in self.cut_groups):
            return
        plain = zeroed(self.model, self.graph, self.keep, self.alive)
        program = self.graph.eval.program
        casts = any(a is not b for a, b in zip(program.nodes, lifted(program).nodes, strict=True))
        tries: list[tuple[nn.Module, Callable[[Inputs], Inputs], float]] = [(plain, Inputs.of, native_bound(plain))]
        if self.precision.dtype == torch.float64:
            wide = private_copy(plain, share=False).double()
            tries.insert(0, (wide, self.precision.inputs, _CAST if casts else ACCEPTED))
        for module, cast, accepted in tries:
            for example in (another_batch(self.graph), self.graph.inputs):
                try:
                    expected = call(module, cast(example), self.graph)
                    found = self._small(self.graph.eval, example, self._cut_state(small))
                except (*REFUSALS, ProofError):  # the user's code makes float32 tensors itself, or holds the batch size
                    continue
                if [t.shape for t in expected] == [t.shape for t in found] or example is self.graph.inputs:
                    return self._note("zeroed", error_between(expected, found), accepted)
        return None

    def module(self, small: nn.Module) -> None:
        """The returned module against its graph, at its own dtype."""
        if isinstance(small, GraphModel):
            return self._runs(small)
        if self.graph.depends:
            return self._note("module", start_error(small, self.plan), native_bound(small))
        state = state_of(small).tensors
        program = fit(self.graph, self.graph.eval, self.keep)
        for example in self.graph.examples:
            constants = fit_constants(self.graph, self.keep)
            expected = execute(program, Outside(lambda n: state[n].detach(), constants, input_tensors(example)))
            self._note("module", error_between(expected, call(small, example, self.graph)), native_bound(small))

    def _runs(self, small: GraphModel) -> None:
        """Some operations take other widths in float64 than at the model's own dtype."""
        try:
            call(small, self.graph.inputs, self.graph)
        except REFUSALS as error:
            raise ProofError(
                f"The smaller model does not run at its own dtype: {str(error).splitlines()[0]}. Most likely an "
                "operation takes multiples of a width only: plan with Channel(round_to=8), or 16."
            ) from error

    def control(self) -> float:
        """The same cut, one unit off, must be far from the reference: a check that cannot fail proves nothing."""
        if not self.cut_groups:
            return float("inf")
        off = {g.name: one_off(self.plan.keep[g.name], self.plan.groups.left(g)) for g in self.cut_groups}
        wrong_plan = replace(self.plan, keep={**self.plan.keep, **off})
        keep, seen = wrong_plan.left, CONTROL * self.rounding
        for seed in range(1, _DRAWS + 1):
            wrong = self._small(self.graph.eval, redraw_inputs(self.graph.inputs), self._cut(keep), keep)
            error = error_between(self.expected, wrong)
            if error >= seen:
                return error
            self.drawn = redrawer(self.graph, self.state, seed, self.precision.dtype)
            self.redrawn()
        if self.graph.depends and (error := apart_by_values(self.model, self.plan, wrong_plan)) >= seen:
            return error
        raise ProofError(
            "The check is blind here: a model cut one unit off differs from the reference by less than "
            f"{seen:.0e}, so nothing is proven. Most likely the output does not depend on the groups that were cut."
        )

    def full(self, example: Inputs, state: Lookup) -> list[Tensor]:
        """The model as it is, nothing removed, in eval mode."""
        program = self.precision.program(fit(self.graph, self.graph.eval, self.alive))
        return execute(program, self._outside(example, state, self.alive))

    def _reference(self, mode: Mode, example: Inputs, state: Lookup) -> list[Tensor]:
        program = without_draws(self.precision.program(fit(self.graph, mode, self.alive)))
        torch.manual_seed(0)  # what is drawn all the same is drawn alike
        whole = execute(program, self._outside(example, state, self.alive), Reference(mode, self.keep, self.alive))
        if not mode.program.depends:  # whatever is a result of the model stays whole
            return whole
        return [self._stays(t, mode.inferred.of(name)) for t, name in zip(whole, program.outputs, strict=True)]

    def _stays(self, result: Tensor, axes: Axes) -> Tensor:
        """The part that stays of a value from which the path goes on."""
        for dim, axis in enumerate(axes):
            if touched(axis, self.keep):
                stays = mask_of(axis, self.keep)[mask_of(axis, self.alive)]
                result = result.index_select(dim, stays.nonzero().flatten().to(result.device))
        return result

    def _small(self, mode: Mode, example: Inputs, state: Lookup, keep: Keep | None = None) -> list[Tensor]:
        keep = self.keep if keep is None else keep
        program = without_draws(self.precision.program(fit(self.graph, mode, keep)))
        torch.manual_seed(0)  # what is drawn all the same is drawn alike
        try:
            return execute(program, self._outside(example, state, keep))
        except REFUSALS as error:
            raise ProofError(
                f"The smaller model does not run: {str(error).splitlines()[0]} {self._suspects()}"
            ) from error

    def _outside(self, example: Inputs, state: Lookup, keep: Keep) -> Outside:
        constants = {name: self.precision.value(t) for name, t in fit_constants(self.graph, keep).items()}
        return Outside(state, constants, input_tensors(self.precision.inputs(example)))

    def _cut_state(self, small: nn.Module) -> Lookup:
        """The state of the smaller model; a weight that grew as it was cut is made anew, without its rounding."""
        state, grown, exact = state_of(small).tensors, self.graph.rms_axes, self.precision.state(self.state)
        return lambda n: (
            cut_one(self.graph, n, exact(n), self.keep, self.alive) if n in grown else self.precision.value(state[n])
        )

    def _cut(self, keep: Keep) -> Lookup:
        return lambda name: cut_one(self.graph, name, self.drawn(name), keep, self.alive)

    def _note(self, check: str, error: float, accepted: float) -> None:
        self.errors[check] = max(error, self.errors.get(check, 0.0))
        self.accepted[check] = accepted
        if not error <= accepted:
            raise ProofError(
                f"Check {check!r} failed: the smaller model differs from its reference by {error:.1e} (relative), "
                f"accepted is {accepted:.0e}. {self._suspects()}"
            )

    def _suspects(self) -> str:
        names = ", ".join(group.name for group in self.cut_groups[:6])
        return (
            f"Groups cut: {names}. Most likely an operation of the model is misread: skip the groups one by one to "
            "find which, and please report the model."
        )


def _alike(one: Program, other: Program) -> bool:
    """Do two programs differ in what they draw at random alone, which a proof settles?"""
    first, second = ([(n.name, n.op, n.args, dict(n.kwargs)) for n in without_draws(p).nodes] for p in (one, other))
    return first == second


def one_off(keep: Tensor, left: Tensor) -> Tensor:
    """As many units of those that are left, each the next one."""
    return torch.zeros_like(left).masked_scatter(left, keep[left].roll(1))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
