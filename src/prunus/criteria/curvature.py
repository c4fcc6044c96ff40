"""Criteria that look at curvature: how the loss changes when a weight goes, to second order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from prunus.criteria.needs import needing
from prunus.stats import Stats
from prunus.types import wide

DAMPING = 0.01
"""Added to a diagonal, as a share of its mean, so that it can be inverted."""


@needing("gradients")
def obd(stats: Stats) -> Mapping[str, Tensor]:
    """½ w² F_ii with the empirical Fisher of the batches' losses for the Hessian.

    Source: LeCun et al. 1990 (optimal brain damage), equation 5. It is half of `taylor`, which comes to the same from
    the first order.
    """
    return {name: 0.5 * wide(stats.weights[name]).square() * f for name, f in stats.fisher.items()}


@needing("gradients")
def obs_diag(stats: Stats) -> Mapping[str, Tensor]:
    """w² / (2 [F⁻¹]_ii): F is the empirical Fisher of all that makes one unit, from one gradient a batch, damped.

    It knows that weights can stand in for each other. Holds every batch's gradient at once: give it a few dozen
    batches. Source: Hassibi & Stork 1993, equation 5; Singh & Alistarh 2020 (WoodFisher), section 3, with rows for
    blocks, and the damping a hundredth of the mean diagonal.
    """
    batches = list(stats.gradients())
    found: dict[str, Tensor] = {}
    for name, w in stats.weights.items():
        grads = [batch[name] for batch in batches if name in batch]
        if grads:
            inverse = _inverse_diagonal(torch.stack(grads), stats.rows(name) or 0, len(batches))
            found[name] = w.double().square() / (2 * inverse)
    return found


def _inverse_diagonal(grads: Tensor, rows: int, m: int) -> Tensor:
    """The diagonal of (λ + Σ g gᵀ / m)⁻¹ for each row; `grads` (batches, *shape), those of `m` that are not zero.

    By Woodbury's identity a system of their number a row: λ⁻¹ (1 - gᵀ (λ m + g gᵀ)⁻¹ g).
    """
    some, shape = grads.shape[0], grads.shape[1:]
    if not shape:
        grads, shape = grads[:, None], torch.Size([1])
    g = grads.double().movedim(rows + 1, 0).reshape(shape[rows], some, -1)
    mean = g.square().sum() / (m * shape.numel())
    damping = float(DAMPING * mean) or 1.0
    system = g @ g.transpose(1, 2) + damping * m * torch.eye(some, dtype=g.dtype, device=g.device)
    explained = (g * torch.linalg.solve(system, g)).sum(1)
    diagonal = (1 - explained).clamp(min=1e-12) / damping
    return diagonal.view(shape[rows], *(n for d, n in enumerate(shape) if d != rows)).movedim(0, rows)


@needing("activations")
def obc(stats: Stats) -> Mapping[str, Tensor]:
    """w² / [H⁻¹]_jj with H = 2 X Xᵀ of what the layer reads: how much the layer's own output changes at best.

    For linear layers and convolutions that are not transposed. Source: Frantar & Alistarh 2022 (OBC),
    arXiv:2208.11580, equation 3, without the updates of other weights; damped by a hundredth of the mean diagonal.
    """
    return dict(_reconstruction(stats))


def _reconstruction(stats: Stats) -> Iterator[tuple[str, Tensor]]:
    for name, gram in stats.gram.items():
        w, rows = stats.weights[name], stats.rows(name) or 0
        columns = w.movedim(rows, 0).flatten(1)
        damping = DAMPING * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        inverse = torch.linalg.inv(2 * (gram + damping[:, None, None] * eye)).diagonal(dim1=1, dim2=2)
        each = inverse.repeat_interleave(columns.shape[0] // gram.shape[0], 0)
        saliency = columns.double().square() / each
        yield name, saliency.view(w.movedim(rows, 0).shape).movedim(0, rows)


@needing("gradients")
def grasp(stats: Stats) -> Mapping[str, Tensor]:
    """w · (H g): how much the norm of the gradient falls when a weight goes; for a network before its training.

    The paper removes what is largest of -w · H g, which is what is least here; it may be negative. Both g and H are
    means over all batches, as in the paper's second pass; the model runs in eval mode. Source: Wang et al. 2020
    (GraSP), arXiv:2002.07376, equation 8; without its temperature of 200, which the loss may put on its logits.
    """
    product = stats.hessian_times(stats.grads)
    return {name: h * stats.weights[name] for name, h in product.items()}
