"""In which number format and memory layout does this model train fastest here? Asked by timing, on a copy.

Neither bf16 nor channels-last is faster everywhere: bf16 is emulated on most desktop processors, and channels-last
slows some narrow layers down. So nothing is looked up in a table: a few training steps of each candidate are timed.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from prunus.errors import RecoverError
from prunus.types import Batch, Loss

Choice: TypeAlias = "bool | Literal['auto']"
"""Yes, no, or whichever is faster here."""

ROUNDS = 4
HOPELESS = 3.0
WORTH = 0.95

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """How training steps are computed; weights stay in their own dtype.

    `bf16`: matrix products and convolutions under autocast to bfloat16. `channels_last`: 4-d weights laid out NHWC.

    >>> str(Precision(bf16=True))
    'bf16'
    """

    bf16: bool = False
    channels_last: bool = False

    def __str__(self) -> str:
        return ("bf16" if self.bf16 else "own dtype") + (", channels last" if self.channels_last else "")


def fastest(
    model: nn.Module, data: Iterable[Batch], loss: Loss, *, bf16: Choice = "auto", channels_last: Choice = "auto"
) -> Precision:
    """Choose the precision in which a training step of `model` on the first batch of `data` takes the least time.

    Each candidate takes `ROUNDS` timed steps (the least counts) on a private copy, turn by turn; a plainer one is taken
    unless another needs at most `WORTH` of its time. A candidate that raises a RuntimeError, or is hopeless at first,
    is dropped. Choices given as True or False are kept. The timings are logged at INFO. The answer may differ
    from run to run where two candidates are close: for repeatable bits ask once and pass the answer on.

    Raises RecoverError when `data` gives no batch.
    """
    candidates = _candidates(model, bf16, channels_last)
    private = _copy(model) if len(candidates) > 1 else None
    if private is None:
        return candidates[0]
    with generators_kept():
        seconds = _seconds(private, _first(data), loss, candidates)
    least = min(seconds.values())
    chosen = next(candidate for candidate in seconds if least >= WORTH * seconds[candidate])
    shown = "; ".join(f"{candidate}: {1000 * value:.1f} ms" for candidate, value in seconds.items())
    _log.info("training step in %s | taken: %s", shown, chosen)
    return chosen


def autocast(model: nn.Module, precision: Precision) -> torch.autocast:
    """Return the context in which the loss is computed: bf16 autocast on the model's device, or nothing."""
    return torch.autocast(_device(model).type, torch.bfloat16, enabled=precision.bf16)


@contextmanager
def laid_out(model: nn.Module, precision: Precision) -> Generator[None]:
    """Hold 4-d weights in channels-last layout if asked; afterwards every weight has its own strides again."""
    tensors = [p for p in model.parameters() if p.dim() == 4] if precision.channels_last else []
    strides = [p.stride() for p in tensors]
    for p in tensors:
        p.data = p.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for p, stride in zip(tensors, strides, strict=True):
            p.data = _strided(p.data, stride)


@contextmanager
def generators_kept() -> Generator[None]:
    """Leave torch's random generators as they were, without waking CUDA up."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        yield


def _strided(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _candidates(model: nn.Module, bf16: Choice, channels_last: Choice) -> list[Precision]:
    """List the admissible precisions, the plainest first."""
    laid = any(p.dim() == 4 for p in model.parameters())
    dtypes = [False, True] if bf16 == "auto" else [bf16]
    layouts = ([False, True] if laid else [False]) if channels_last == "auto" else [channels_last]
    return [Precision(dtype, layout) for dtype in dtypes for layout in layouts]


def _copy(model: nn.Module) -> nn.Module | None:
    try:
        return copy.deepcopy(model).train()
    except RuntimeError as error:  # torch copies no computed weights, such as those of the old weight_norm
        _log.info("precision not timed, the model cannot be copied: %s", error)
        return None


def _first(data: Iterable[Batch]) -> Batch:
    for batch in data:
        return batch
    raise RecoverError(
        "The training data gave no batch. Check that the data set is not empty and batches are not dropped."
    )


def _seconds(model: nn.Module, batch: Batch, loss: Loss, candidates: list[Precision]) -> dict[Precision, float]:
    """Time training steps turn by turn; the first round warms up and drops what fails or is hopelessly slow."""
    plain = candidates[0]
    _step_seconds(model, batch, loss, plain)
    limit = HOPELESS * _step_seconds(model, batch, loss, plain)
    fit = [c for c in candidates if c == plain or _fits(model, batch, loss, c, limit)]
    rounds = [{c: _step_seconds(model, batch, loss, c) for c in fit} for _ in range(ROUNDS)]
    return {c: min(r[c] for r in rounds) for c in fit}


def _fits(model: nn.Module, batch: Batch, loss: Loss, precision: Precision, limit: float) -> bool:
    try:
        _step_seconds(model, batch, loss, precision)
        return _step_seconds(model, batch, loss, precision) <= limit
    except RuntimeError as error:  # a view that needs NCHW, an operator without bf16, too little memory
        _log.info("%s not taken: %s", precision, error)
        return False


def _step_seconds(model: nn.Module, batch: Batch, loss: Loss, precision: Precision) -> float:
    """Time one forward and backward pass."""
    with laid_out(model, precision):
        _synchronize(model)
        begin = time.perf_counter()
        with autocast(model, precision):
            value = loss(model, batch)
        value.backward()
        _synchronize(model)
        end = time.perf_counter()
        model.zero_grad()
    return end - begin


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _synchronize(model: nn.Module) -> None:
    if _device(model).type == "cuda":
        torch.cuda.synchronize(_device(model))
