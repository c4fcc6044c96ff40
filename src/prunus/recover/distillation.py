"""Let a pruned network learn from the one it came from: losses that compare it with its teacher."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.errors import RecoverError
from prunus.graph.private import unwrap
from prunus.recover.calls import Call, feed, hookable, logits_of, repeated, watched
from prunus.types import Batch, Loss

Output: TypeAlias = Callable[[Any], Tensor]
"""Picks the logits out of what a model returns."""

SILENCE = 1e-6

_MISFIT = re.compile(r"dtype|scalar type|type .*should be the same")
"""What torch says of operands of different dtypes."""


def logits(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over all but the last dimension.

    A scalar to add to a loss of your own. Computed in float32; no gradient reaches `teacher`.

    Args:
        student, teacher: logits (..., classes) of equal shapes; at least two classes.
        temperature: T > 0; the higher, the more the unlikely classes count. T² keeps gradients of one size.

    Raises RecoverError when shapes differ, there is only one class, or the temperature is not positive.

    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    >>> round(logits(student, teacher, temperature=1.0).item(), 4)  # ln 2 + 3/4 ln 3/4 + 1/4 ln 1/4
    0.1308

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2. We give the divergence, they the cross-entropy; these
    differ by the teacher's entropy, a constant.
    """
    _check_number("temperature", temperature, 0 < temperature < math.inf, "a positive number, such as 4.0")
    _check_shapes(student, teacher, "Logits", " Other classes, or not the output you meant: pick it with output=...")
    if student.shape[-1:] in ((), (1,)):
        raise RecoverError(
            f"Logits of shape {tuple(student.shape)} hold one class, to which softmax always gives 1: there is nothing "
            "to learn. For a single logit x a sample compare torch.cat([torch.zeros_like(x), x], -1)."
        )
    log_student = F.log_softmax(student.float() / temperature, -1)
    log_teacher = F.log_softmax(teacher.detach().float() / temperature, -1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * divergence.mean()


def features(student: Tensor, teacher: Tensor) -> Tensor:
    """mean((student - teacher)²) / mean(teacher²): 0 when equal, 1 for a student that gives zeros.

    A scalar that does not change when both are scaled alike, so layers of large values do not outweigh others.
    Both means are over all elements, in float32; mean(teacher²) counts as at least `SILENCE`. No gradient reaches
    `teacher`.

    Args:
        student, teacher: what one layer gives for the same inputs, of equal shapes.

    Raises RecoverError when the shapes differ.

    >>> features(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0])).item()  # (0 + 4) / (1 + 4)
    0.800000011920929

    Source: the hint loss of Romero et al. 2015 (FitNets), arXiv:1412.6550, equation 3, without their regressor, as
    widths are equal; the division by mean(teacher²), in place of their factor 1/2, is ours.
    """
    return _hint(student, teacher, "Features")


def loss(
    teacher: nn.Module,
    task: Loss | None = None,
    *,
    temperature: float = 4.0,
    weight: float = 0.9,
    features: Sequence[str] | Mapping[str, str] = (),
    feature_weight: float = 1.0,
    output: Output | None = None,
) -> Loss:
    """Make a loss (student, batch) -> scalar, for `finetune` or a loop of your own, that follows `teacher`.

    It is (1 - weight) · task + weight · logits + feature_weight · features. The task loss runs as it is; every call it
    makes of the student is repeated on the teacher, with the same arguments, and compared. `logits` is the mean over
    these calls, `features` over calls and layers. With weight 0 logits are not compared.

    The teacher runs in eval mode, without gradients; its modes, buffers and gradients stay as they are. It must be on
    the student's device, and of a dtype that takes the student's inputs; it gets them as they were before the student
    changed any in place. To hook its layers, a student in `torch.compile` or `DataParallel` runs without these when
    `features` are given.

    Args:
        task: (model, batch) -> scalar, such as a cross-entropy. None: learn from the teacher alone, logits +
            feature_weight · features, where a tensor batch is the input, of a tuple or list the first element is, and a
            dict holds keyword arguments.
        temperature: of `logits`.
        weight: share of the logits in [0, 1].
        features: names of layers of unpruned width, or student's name -> teacher's name where these differ.
        feature_weight: factor of the features, at least 0.
        output: model output -> logits (..., classes); default: the output if it is a tensor, or its `logits`.

    Raises:
        RecoverError: a number out of range, an unknown layer, and, when called: the student is the teacher, the task
            loss never calls the student or gives no scalar, no logits in an output, shapes that differ, or a teacher
            of another dtype that cannot take the student's inputs.

    >>> teacher, student = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> follow = loss(teacher, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    >>> follow(student, (torch.ones(4, 2), torch.tensor([0, 1, 2, 0]))).shape
    torch.Size([])

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2; Romero et al. 2015, arXiv:1412.6550, equation 3.
    """
    _check_number("temperature", temperature, 0 < temperature < math.inf, "a positive number, such as 4.0")
    _check_number("weight", weight, 0 <= weight <= 1, "the share in [0, 1] that follows the teacher, such as 0.9")
    _check_number("feature_weight", feature_weight, 0 <= feature_weight < math.inf, "a number of at least 0")
    layers = _layers(features)
    teacher = unwrap(teacher)
    _check_names(teacher, layers.values(), "teacher")
    share = 1.0 if task is None else weight
    return _Follow(teacher, task or feed, temperature, share, layers, feature_weight, output or logits_of)


@dataclass(frozen=True, eq=False)
class _Follow:
    teacher: nn.Module
    task: Callable[[nn.Module, Batch], Any]
    temperature: float
    share: float
    layers: Mapping[str, str]
    feature_weight: float
    output: Output

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self._check_student(model)
        model = hookable(model) if self.layers else model
        with watched(model, self.layers) as calls:
            value = self.task(model, batch)
        _check_called(model, calls)
        terms = [self._compared(call, self._repeated(model, call)) for call in calls]
        total = torch.stack(terms).mean()
        return total if self.task is feed else (1 - self.share) * _scalar(value) + total

    def _check_student(self, model: nn.Module) -> None:
        student = unwrap(model)
        if student is self.teacher:
            raise RecoverError(
                f"The student is the teacher itself ({type(student).__name__}): they never differ. Teach the model "
                "that prunus.shrink returned, or make the loss of a copy.deepcopy taken before training."
            )
        _check_names(student, self.layers, "student")

    def _repeated(self, student: nn.Module, call: Call) -> Call:
        try:
            return repeated(self.teacher, call, self.layers.values())
        except RuntimeError as error:
            ours, theirs = _dtype_of(student), _dtype_of(self.teacher)
            if ours == theirs or not _MISFIT.search(str(error)):
                raise
            raise RecoverError(
                f"The teacher holds {theirs}, the student {ours}, and what the student was called with does not fit "
                f"the teacher: {error}. Make the loss of teacher.to({ours}), or keep the student in {theirs} and train "
                "it under torch.autocast, as finetune(..., bf16=True) does."
            ) from error

    def _compared(self, student: Call, teacher: Call) -> Tensor:
        terms = [self.feature_weight * self._feature_term(student, teacher)] if self.layers else []
        if self.share > 0 or not terms:
            ours, theirs = (_checked(self.output(call.output)) for call in (student, teacher))
            terms.append(self.share * logits(ours, theirs, temperature=self.temperature))
        return torch.stack(terms).sum()

    def _feature_term(self, student: Call, teacher: Call) -> Tensor:
        terms: list[Tensor] = []
        for ours, theirs in self.layers.items():
            _check_runs(ours, len(student.inner[ours]), len(teacher.inner[theirs]))
            for one, other in zip(student.inner[ours], teacher.inner[theirs], strict=True):
                terms.append(_hint(one, other, f"Features of {ours!r}"))
        return torch.stack(terms).mean()


def _hint(student: Tensor, teacher: Tensor, what: str) -> Tensor:
    _check_shapes(
        student,
        teacher,
        what,
        " A pruned layer has fewer units. Choose one whose width stays, such as the output of a residual block.",
    )
    target = teacher.detach().float()
    return F.mse_loss(student.float(), target) / target.square().mean().clamp_min(SILENCE)


def _dtype_of(model: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def _layers(names: Sequence[str] | Mapping[str, str]) -> Mapping[str, str]:
    if isinstance(names, str):
        raise RecoverError(f"features={names!r} is one string; expected a list of layers: features=[{names!r}].")
    return dict(names) if isinstance(names, Mapping) else {name: name for name in names}


def _check_number(name: str, value: float, fits: bool, expected: str) -> None:
    if not fits:
        raise RecoverError(f"{name}={value}; expected {expected}.")


def _check_names(model: nn.Module, names: Iterable[str], role: str) -> None:
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            raise RecoverError(
                f"features: the {role} ({type(model).__name__}) has no layer {name!r}"
                f"{f'; did you mean {near[0]!r}?' if near else '.'} Expected names of model.named_modules(); where the "
                "two models call a layer differently, pass {student's name: teacher's name}."
            )


def _check_called(model: nn.Module, calls: Sequence[Call]) -> None:
    if not calls:
        raise RecoverError(
            f"The task loss never called the model it was given ({type(model).__name__}), so there is no output to "
            "compare with the teacher's. It may call another model, or model.forward(...), or only parts of it. Call "
            "model(...) in it."
        )


def _check_runs(name: str, ours: int, theirs: int) -> None:
    if ours != theirs or not ours:
        raise RecoverError(
            f"The layer {name!r} ran {ours} times in a call of the student and {theirs} times in the teacher; expected "
            "as often in both, at least once. Its code may be skipped in one of eval and train mode, or compiled. "
            "Choose another layer."
        )


def _check_shapes(student: Tensor, teacher: Tensor, what: str, hint: str = "") -> None:
    if student.shape != teacher.shape:
        raise RecoverError(
            f"{what} have shape {tuple(student.shape)} in the student and {tuple(teacher.shape)} in the teacher; "
            f"expected the same.{hint}"
        )


def _scalar(value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.reshape(())
    given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise RecoverError(f"The task loss returned {given}; expected a scalar tensor, the mean over the batch.")


def _checked(picked: Any) -> Tensor:
    if isinstance(picked, Tensor):
        return picked
    raise RecoverError(
        f"output=... picked a {type(picked).__name__} out of what the model returns; expected the tensor of logits."
    )
