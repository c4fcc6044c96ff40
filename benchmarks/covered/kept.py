"""Which slices of the original a smaller model kept, read off the values of its state alone."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

Kept = Mapping[str, list[Tensor]]
"""State name -> the kept indices of each dimension."""
CANDIDATES = 64
"""So many places are tried where the first value of a smaller tensor occurs in the original."""


class Unlike(Exception):
    """A tensor of the smaller model is no slice of the original's."""


def state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers, and tensors kept as plain attributes; tied ones under their first name."""
    plain = {name: tensor for name, _, _, tensor in plain_tensors(model)}
    return {**dict(model.named_parameters()), **dict(model.named_buffers()), **plain}


def plain_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """(name, owner, attribute, tensor) of each tensor that torch does not know as a parameter or buffer."""
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{path}.{attribute}".lstrip("."), module, attribute, value


@torch.no_grad()
def redraw(model: nn.Module, seed: int = 0) -> None:
    """Give all floating state values of its own that keep activations in range, in one dimension all different.

    Matrices: uniform with variance 1 / fan-in. Scales and variances: in [0.5, 1.5]. Biases and means: in [-0.25, 0.25].
    """
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in state(model).items():
        if tensor.is_floating_point() and tensor.numel():
            tensor.copy_(_values(name, tensor, draw))


def _values(name: str, tensor: Tensor, draw: torch.Generator) -> Tensor:
    count = tensor.numel()
    if max(tensor.shape, default=1) < count:
        uniform = torch.rand(tensor.shape, generator=draw) * 2 - 1
        return uniform * (3 * len(tensor) / count) ** 0.5
    spread = ((torch.randperm(count, generator=draw) + torch.rand(1, generator=draw)) / count).view(tensor.shape)
    return spread / 2 - 0.25 if name.endswith(("bias", "mean", "beta")) else spread + 0.5


def untied(whole: nn.Module, small: nn.Module) -> dict[str, Tensor]:
    """Other names of tied parameters, where the smaller model has a parameter of its own under such a name."""
    first: dict[int, str] = {}
    theirs = dict(small.named_parameters(remove_duplicate=False))
    every = whole.named_parameters(remove_duplicate=False)
    named = [(name, first.setdefault(id(tensor), name), tensor) for name, tensor in every]
    return {name: t for name, one, t in named if name in theirs and theirs[name] is not theirs.get(one)}


def read_kept(whole: nn.Module, small: nn.Module) -> Kept:
    """The kept indices of every floating tensor. Raises `Unlike` where a tensor is no slice of the original's."""
    theirs = {**state(small), **dict(small.named_parameters(remove_duplicate=False))}
    kept: dict[str, list[Tensor]] = {}
    for name, tensor in {**state(whole), **untied(whole, small)}.items():
        if name not in theirs:
            continue  # state that is never read may be left out
        found = theirs[name].detach()
        if tensor.is_floating_point() and found.is_floating_point():
            kept[name] = slices_of(name, tensor.detach(), found.to(tensor.dtype))
        elif tensor.shape == found.shape and not torch.equal(tensor, found):
            raise Unlike(f"{name}: same shape, other values")
    return kept


def slices_of(name: str, whole: Tensor, small: Tensor) -> list[Tensor]:
    """The indices along each dimension at which `small` stands in `whole`, value by value."""
    if whole.shape == small.shape:
        if not torch.equal(whole, small):
            raise Unlike(f"{name}: same shape, other values")
        return [torch.arange(n) for n in whole.shape]
    if whole.ndim != small.ndim or any(b > a or b == 0 for a, b in zip(whole.shape, small.shape, strict=True)):
        raise Unlike(f"{name}: {tuple(small.shape)} of {tuple(whole.shape)}")
    first = small[(0,) * small.ndim]
    for place in (whole == first).nonzero()[:CANDIDATES]:
        index = _through(whole, small, place.tolist())
        if index is not None and torch.equal(small, _cut(whole, index)):
            return index
    raise Unlike(f"{name}: {tuple(small.shape)} holds values that are no slice of the original's")


def _cut(whole: Tensor, index: list[Tensor]) -> Tensor:
    for dim, kept in enumerate(index):
        if len(kept) < whole.shape[dim]:
            whole = whole.index_select(dim, kept)
    return whole


def _through(whole: Tensor, small: Tensor, place: list[int]) -> list[Tensor] | None:
    """The indices of each dimension, if small[0, ..., 0] stands at `place`; None if some line does not fit."""
    index: list[Tensor] = []
    for dim in range(whole.ndim):
        found = _line(whole, small, place, dim)
        if found is None:
            return None
        index.append(found)
    return index


def _line(whole: Tensor, small: Tensor, place: list[int], dim: int) -> Tensor | None:
    line, mine = _along(whole, place, dim), _along(small, [0] * small.ndim, dim)
    order = line.argsort()
    at = torch.searchsorted(line[order], mine).clamp(max=len(line) - 1)
    found = order[at]
    if not torch.equal(line[found], mine):
        return None
    twice = (line[order][1:] == line[order][:-1]).any()
    return found if not twice else _settled(whole, small, place, dim, line, mine)


def _settled(whole: Tensor, small: Tensor, place: list[int], dim: int, line: Tensor, mine: Tensor) -> Tensor | None:
    """Values that occur twice in a line: the next lines beside it, through places that are sure, tell them apart."""
    options = [(line == value).nonzero().flatten().tolist() for value in mine]
    for step, there in itertools.islice(_beside(whole, small, place, dim), 4):
        near, own = _along(whole, there, dim), _along(small, step, dim)
        options = [[i for i in which if near[i] == own[j]] for j, which in enumerate(options)]
    return torch.tensor([which[0] for which in options]) if all(options) else None


def _beside(whole: Tensor, small: Tensor, place: list[int], dim: int) -> Iterator[tuple[list[int], list[int]]]:
    """Positions in small and in whole that are surely the same, off the first line."""
    for other in range(whole.ndim):
        if other == dim:
            continue
        line, mine = _along(whole, place, other), _along(small, [0] * small.ndim, other)
        for number in range(1, len(mine)):
            where = (line == mine[number]).nonzero().flatten()
            if len(where) == 1:
                yield (
                    [number if d == other else 0 for d in range(whole.ndim)],
                    [int(where) if d == other else place[d] for d in range(whole.ndim)],
                )


def _along(tensor: Tensor, place: list[int], dim: int) -> Tensor:
    return tensor[tuple(slice(None) if d == dim else i for d, i in enumerate(place))].contiguous()


@torch.no_grad()
def zeroed(whole: nn.Module, kept: Kept, dtype: torch.dtype) -> nn.Module:
    """A copy of the original in which every slice that was not kept is zero."""
    model = copy.deepcopy(whole).to(dtype).eval()
    for _, owner, attribute, tensor in list(plain_tensors(model)):
        setattr(owner, attribute, tensor.to(dtype) if tensor.is_floating_point() else tensor)
    for name in kept.keys() - state(model).keys():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        setattr(owner, leaf, nn.Parameter(getattr(owner, leaf).clone()))
    tensors = state(model)
    for name, dims in kept.items():
        for dim, index in enumerate(dims):
            if len(index) < tensors[name].shape[dim]:
                gone = torch.ones(tensors[name].shape[dim], dtype=torch.bool).index_fill_(0, index, False)
                tensors[name].index_fill_(dim, gone.nonzero().flatten(), 0)
    return model


def removed(whole: nn.Module, small: nn.Module) -> float:
    """The share of parameters that went."""
    before, after = (sum(p.numel() for p in model.parameters()) for model in (whole, small))
    return 1 - after / before
