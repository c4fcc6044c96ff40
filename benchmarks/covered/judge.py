"""Is a smaller model the original without what it lost? Judged from the two modules alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from covered.alive import Doubled, LivingStatistics
from covered.entry import Call, cast, run
from covered.kept import Kept, Unlike, read_kept, state, zeroed

RIGHT, GIVEN, NOTHING = "right", "right given kept statistics", "nothing prunable"
REFUSED, WRONG, CRASHED, SLOW = "refused", "wrong", "crashed", "over the time limit"
VERDICTS = (RIGHT, GIVEN, NOTHING, REFUSED, WRONG, CRASHED, SLOW)
BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-3}
SEEN = 10
"""A result counts only where the original with nothing zeroed is further off than the bound, by this factor."""
HUGE = 100_000_000
"""Parameters from which on a model is compared at its own dtype."""
REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError, KeyError)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One of `VERDICTS`, why, and the worst relative error of the comparison that decided.

    `control` is that of the original with nothing zeroed: what the comparison sees when all of the removal is undone.
    """

    verdict: str
    why: str = ""
    error: float | None = None
    control: float | None = None


def judge(whole: nn.Module, small: nn.Module, calls: Sequence[Call]) -> Verdict:
    """Compare the smaller model with the original whose lost slices are zero.

    Neither module is changed; both are compared in eval mode, in float64 where the model is not huge.
    """
    if _same_sizes(whole, small):
        return Verdict(NOTHING)
    try:
        kept = read_kept(whole, small)
    except Unlike as error:
        return Verdict(WRONG, str(error))
    dtype = torch.float32 if sum(p.numel() for p in whole.parameters()) > HUGE else torch.float64
    verdict = _compared(whole, small, kept, calls, dtype)
    if verdict.verdict == CRASHED and dtype == torch.float64:
        return _compared(whole, small, kept, calls, torch.float32)
    return verdict


def _same_sizes(whole: nn.Module, small: nn.Module) -> bool:
    theirs = state(small)
    return all(name not in theirs or theirs[name].shape == t.shape for name, t in state(whole).items())


def _compared(whole: nn.Module, small: nn.Module, kept: Kept, calls: Sequence[Call], dtype: torch.dtype) -> Verdict:
    """The smaller model runs first: what fails there is its own fault."""
    double = dtype == torch.float64
    calls = [cast(call, dtype) for call in calls]
    try:
        mine = zeroed(small, {}, dtype)
        found = [results(mine, call, doubled=double) for call in calls]
        del mine
    except REFUSALS as error:
        return Verdict(CRASHED, f"the smaller model cannot be called: {first_line(error)}")
    reference = zeroed(whole, kept, dtype)
    nearest = Verdict(WRONG, error=math.inf)
    for verdict, mode in ((RIGHT, nullcontext), (GIVEN, LivingStatistics)):
        apart = _apart(reference, calls, found, double, mode)
        if apart.error is not None and apart.error <= BOUNDS[dtype]:
            del reference
            control = _apart(zeroed(whole, {}, dtype), calls[:1], found[:1], double, nullcontext).error
            return _seen(Verdict(verdict, "", apart.error, control), BOUNDS[dtype])
        nearest = min(apart, nearest, key=lambda v: math.inf if v.error is None else v.error)
    return nearest


def _seen(verdict: Verdict, bound: float) -> Verdict:
    if verdict.control is None or verdict.control >= SEEN * bound:
        return verdict
    return dataclasses.replace(verdict, verdict=WRONG, why="the comparison is blind: undoing the removal moves nothing")


def _apart(
    reference: nn.Module, calls: Sequence[Call], found: Sequence[Mapping[str, Tensor]], double: bool, mode: Any
) -> Verdict:
    worst, where = 0.0, ""
    for call, theirs in zip(calls, found, strict=True):
        expected = results(reference, call, doubled=double, mode=mode())
        missing = expected.keys() ^ theirs.keys()
        if missing or not expected:
            return Verdict(WRONG, f"results differ in {', '.join(sorted(missing)[:4]) or 'number: there are none'}")
        for path, tensor in expected.items():
            error = relative_error(tensor, theirs[path])
            if not error <= worst:
                worst, where = error, f"{path or 'the result'}: {_shapes(tensor, theirs[path])}"
    return Verdict(WRONG, where, worst)


def _shapes(a: Tensor, b: Tensor) -> str:
    return "values differ" if a.shape == b.shape else f"shape {tuple(b.shape)} instead of {tuple(a.shape)}"


def relative_error(expected: Tensor, found: Tensor) -> float:
    """The largest difference over the largest value; infinite where shapes or integers differ."""
    if expected.shape != found.shape or expected.isnan().any() or found.isnan().any():
        return math.inf
    if not expected.is_floating_point() or not expected.numel():
        return 0.0 if torch.equal(expected, found) else math.inf
    gap = torch.where(expected == found, 0.0, (expected - found).double()).abs().max()
    scale = expected.double().nan_to_num(posinf=0.0, neginf=0.0).abs().max()
    return float(gap / scale.clamp(min=1e-30))


@torch.no_grad()
def results(
    model: nn.Module, call: Call, *, doubled: bool = False, mode: AbstractContextManager[Any] | None = None
) -> dict[str, Tensor]:
    """Every tensor that a model returns, by its path; caches are left out."""
    with ExitStack() as stack:
        stack.enter_context(Doubled() if doubled else nullcontext())
        stack.enter_context(mode or nullcontext())
        torch.manual_seed(0)
        return dict(leaves(run(model, cast(call, torch.float64 if doubled else torch.float32)), ""))


def leaves(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}.{number}".lstrip("."))


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:300]
