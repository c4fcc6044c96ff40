"""Does the file compute what the model computes? Compared in ONNX Runtime, on given, redrawn and other-sized calls."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.errors import ExportError, MeasureError
from prunus.export.batch import Call, redrawn, with_batch
from prunus.export.capture import FIXED, brief
from prunus.export.flat import Flat
from prunus.measure.session import Session

ACCEPTED = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2}
"""The error accepted, as a share of the largest value of an output, by the coarsest dtype of the model.

Two correct runtimes add in another order: in float32 their results lie 1e-7 to 1e-5 apart, in half precision, where
each result is rounded to 3 digits, up to some 1e-3. A wrong operation, size or weight shows as 1e-2 to 1. The bounds
lie between. In float64 the translation writes some constants in float32.
"""


@dataclass(frozen=True, eq=False)
class _Case:
    """A call to compare on. `given`: of the user's own rows, which the model must answer."""

    label: str
    flat: Flat
    call: Call
    given: bool = False
    resized: bool = False


@dataclass(frozen=True)
class Agreement:
    """The worst error, over so many calls, at these batch sizes. `blind` outputs were zero in all of them."""

    worst_error: float
    compared: int
    batches: tuple[int, ...]
    blind: tuple[str, ...]


def agreement(session: Session, flats: Sequence[Flat], calls: Sequence[Call], places: Collection[int]) -> Agreement:
    """Compare file and model on every example, on redrawn ones, and at other batch sizes (`places` carry the batch).

    The batch sizes are the example's, 1, and one more than the example's. Of an output that is floating the error is
    its largest difference over its largest value in all calls; of others, the share of elements that differ.

    Raises ExportError where they differ by more than `ACCEPTED`, or either gives NaN on an example.
    """
    gaps, scales = [0.0] * len(session.outputs), [0.0] * len(session.outputs)
    where, compared, batches = [""] * len(gaps), 0, set[int]()
    for case in _cases(flats, calls, places):
        expected = _expected(case)
        if expected is None:
            continue
        for i, (ours, found) in enumerate(zip(expected, _found(session, case, len(expected)), strict=True)):
            gap, scale = _difference(ours, found, f"{session.outputs[i]!r}, {case.label}")
            where[i] = case.label if gap > gaps[i] else where[i]
            gaps[i], scales[i] = max(gap, gaps[i]), max(scale, scales[i])
        compared += 1
        batches |= {len(case.call[i]) for i in places}
    errors = [gap / max(scale, 1e-30) for gap, scale in zip(gaps, scales, strict=True)]
    worst = max(range(len(errors)), key=errors.__getitem__)
    bound = accepted(flats[0].model, inputs=calls[0])
    if not errors[worst] <= bound:
        raise ExportError(
            f"The file computes something else: output {session.outputs[worst]!r} differs from PyTorch by "
            f"{errors[worst]:.2g} of its largest value (at most {bound:g} is accepted), worst on {where[worst]}. No "
            "file was written. Either the model draws random numbers in eval mode, or an operation of it is translated "
            "wrongly: try another opset=, or export the model in parts to find it."
        )
    blind = tuple(name for name, scale in zip(session.outputs, scales, strict=True) if not scale)
    return Agreement(errors[worst], compared, tuple(sorted(batches)), blind)


def accepted(model: nn.Module, inputs: Sequence[Tensor]) -> float:
    """The bound for a model: that of its coarsest floating dtype, or of its inputs where it has none."""
    held = [t.dtype for t in (*model.parameters(), *model.buffers(), *inputs) if t.dtype in ACCEPTED]
    return max((ACCEPTED[dtype] for dtype in held), default=ACCEPTED[torch.float32])


def _cases(flats: Sequence[Flat], calls: Sequence[Call], places: Collection[int]) -> Iterator[_Case]:
    for number, (flat, call) in enumerate(zip(flats, calls, strict=True), 1):
        name = "the example" if len(calls) == 1 else f"example {number}"
        yield _Case(name, flat, call, given=True)
        yield _Case(f"{name} redrawn", flat, redrawn(call))
    if places:
        size = len(calls[0][min(places)])
        for other in sorted({1, max(size, 2) + 1} - {size}):
            call = with_batch(calls[0], places, other)
            yield _Case(f"the example at batch {other}", flats[0], call, given=True, resized=True)
            yield _Case(f"the example redrawn at batch {other}", flats[0], redrawn(call, seed=other))


def _expected(case: _Case) -> list[Tensor] | None:
    """What PyTorch gives; None for a redrawn call that the model does not answer with numbers."""
    try:
        with torch.no_grad():
            results = list(case.flat(*[t.clone() for t in case.call]))
    except Exception as error:  # the model's own code may raise anything
        if case.resized:
            raise ExportError(
                f"The model itself refuses {case.label}, so a dynamic batch cannot be checked: {brief(error)} {FIXED} "
                "mend the model."
            ) from error
        if case.given:
            raise ExportError(
                f"The model refuses {case.label}: {brief(error)} Pass inputs the model runs on."
            ) from error
        return None
    if any(bool(t.isnan().any()) for t in results if t.is_floating_point()):
        if case.given:
            raise ExportError(
                f"The model itself gives NaN on {case.label}, so nothing can be checked. Pass an example that it "
                "answers with numbers, and look for NaN in its weights."
            )
        return None
    return results


def _found(session: Session, case: _Case, count: int) -> list[Tensor]:
    try:
        results = session.run(dict(zip(session.inputs, case.call, strict=True)))
    except MeasureError as error:
        hint = f" {FIXED} report the model." if case.resized else ""
        raise ExportError(f"The file cannot run {case.label}: {error}{hint}") from error
    if len(results) != count:
        raise ExportError(
            f"The file gives {len(results)} results for {case.label}, the model {count}. {FIXED} report it."
        )
    return results


def _difference(ours: Tensor, found: Tensor, where: str) -> tuple[float, float]:
    """(largest difference, largest value) of one result."""
    if ours.shape != found.shape or ours.dtype != found.dtype:
        raise ExportError(
            f"The file computes something else: output {where}, is {tuple(found.shape)} {found.dtype} there and "
            f"{tuple(ours.shape)} {ours.dtype} in PyTorch. {FIXED} mend a size that is computed from the batch."
        )
    if not ours.numel():
        return 0.0, 0.0
    if not ours.is_floating_point():
        return float((ours != found).double().mean()), 1.0
    a, b = ours.double(), found.double()
    gap = float(torch.where(a == b, 0.0, a - b).abs().max())  # a mask of infinities agrees with itself
    if gap != gap:
        raise ExportError(f"The file gives NaN where PyTorch gives numbers: output {where}.")
    return gap, float(a.nan_to_num(posinf=0.0, neginf=0.0).abs().max())
