"""Count batch-norm statistics again: after pruning, layers see other activations than those they have averages of."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # pyright: ignore[reportPrivateUsage]

from prunus.errors import RecoverError
from prunus.graph.interpret import GraphModel
from prunus.recover.recalibrate_graph import average_statistics, statistics_of
from prunus.types import Batch

M = TypeVar("M", bound=nn.Module)
Call: TypeAlias = "Callable[[nn.Module, Batch], Any]"
"""Feeds a batch to the model; what it returns is not used."""
_NO_BATCHES = "recalibrate was given no batches. Pass a few hundred samples; a generator can be read only once."


def recalibrate(model: M, batches: Iterable[Batch], *, call: Call | None = None) -> M:
    """Estimate the running means and variances of every batch norm anew, in place, and return `model`.

    Each statistic becomes the plain average over `batches` of the batch's own: mean_i / k and unbiased variance_i / k
    summed over the k batches. No weight changes; everything but batch norm runs in eval mode (no dropout). A model
    without batch norms that hold statistics is returned as it is, and `batches` are not read.

    Args:
        batches: a few hundred samples in batches of the training size are enough; labels are not used.
        call: (model, batch) -> anything; default: a tensor is the argument, of a tuple or list the first element is,
            a dict holds the keyword arguments.

    Raises:
        RecoverError: no batches, a batch that cannot be fed without `call`, or statistics that are not finite; the old
            statistics are put back.

    >>> norm = nn.BatchNorm1d(1)
    >>> recalibrate(norm, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])]).running_mean
    tensor([3.])

    Source: Wu & Johnson 2021, arXiv:2105.07576, section 3 (PreciseBN). We average the variances of the batches, they
    aggregate the moments of all samples; both agree up to the spread of the batch means.
    """
    if isinstance(model, GraphModel):
        if statistics_of(model.programs[0]) and not average_statistics(model, batches, call or _call):
            raise RecoverError(_NO_BATCHES)
        return model
    norms = {name: m for name, m in model.named_modules() if isinstance(m, BatchNorm) and m.track_running_stats}
    if norms:
        with _averaging(model, norms):
            fed = _feed(model, batches, call or _call)
            _check(norms, fed)
    return model


def _feed(model: nn.Module, batches: Iterable[Batch], call: Call) -> int:
    fed = 0
    with torch.no_grad():
        for batch in batches:
            call(model, batch)
            fed += 1
    return fed


def _call(model: nn.Module, batch: Batch) -> Any:
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)) and batch:
        return model(batch[0])
    raise RecoverError(
        f"A batch is a {type(batch).__name__}; expected a tensor, a tuple or list whose first element is the input, or "
        "a dict of keyword arguments. Pass call=lambda model, batch: ... to feed it."
    )


def _check(norms: Mapping[str, BatchNorm], fed: int) -> None:
    if not fed:
        raise RecoverError(_NO_BATCHES)
    for name, norm in norms.items():
        if not all(bool(torch.isfinite(t).all()) for t in _statistics(norm)):
            raise RecoverError(
                f"The statistics of {name!r} are not finite after {fed} batches. The activations before it overflow, "
                "or the inputs are not finite. The old statistics were put back."
            )


@contextmanager
def _averaging(model: nn.Module, norms: Mapping[str, BatchNorm]) -> Generator[None]:
    """Let batch norms average from nothing while all else is in eval mode; on an error put the statistics back."""
    modes = {module: module.training for module in model.modules()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    old = {name: [t.clone() for t in _statistics(norm)] for name, norm in norms.items()}
    model.eval()
    for norm in norms.values():
        norm.train().reset_running_stats()
        norm.momentum = None
    try:
        yield
    except BaseException:
        for name, norm in norms.items():
            for tensor, kept in zip(_statistics(norm), old[name], strict=True):
                tensor.copy_(kept)
        raise
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
        for module, training in modes.items():
            module.training = training


def _statistics(norm: BatchNorm) -> list[Tensor]:
    """List running mean, running variance and the number of batches behind them, as far as there are any."""
    return [t for t in (norm.running_mean, norm.running_var, norm.num_batches_tracked) if t is not None]
