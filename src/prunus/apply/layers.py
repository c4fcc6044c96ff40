"""`layers`: whole layers that could be left out, each with how much it changes what flows through it."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from prunus.errors import TraceError
from prunus.graph.private import private_copy, unwrap
from prunus.measure.untouched import fresh
from prunus.types import Inputs

STACKS = (nn.ModuleList, nn.Sequential)
_CONVS = nn.modules.conv._ConvNd  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True, eq=False)
class Layers:
    """Layers that give back what they take in shape and type, each with its block influence; larger = keep.

    `fixed` holds the entries of stacks of layers that cannot be left out, with the reason.
    """

    scores: Mapping[str, float]
    fixed: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.scores)

    def __str__(self) -> str:
        width = max((len(name) for name in self.scores), default=0)
        lines = [f"{len(self.scores)} layers whose input and output may be joined; block influence, larger = keep"]
        return "\n".join([*lines, *(f"  {name:<{width}}  {score:.4f}" for name, score in self.scores.items())])


def layers(model: nn.Module, inputs: Any) -> Layers:
    """Find the layers that `drop_layers` could leave out, by running the example calls once; nothing is touched.

    A layer is an entry of an `nn.ModuleList` or `nn.Sequential` with another entry of its class beside it, made of
    modules and holding a weight of two or more dimensions. It may go where the first tensor it is given and the first
    it returns have the same shape and type in every call. Where such a layer is a stage, in which others follow one
    another, those are listed; otherwise what it holds is a part of it.

    The score is 1 - the mean cosine similarity of the two over all positions of all calls, in [0, 2]. Channels are
    dimension 1 where the layer holds a convolution, else the last. Padded positions count like all others.

    Raises `TraceError` when the model refuses the inputs.

    Source: ShortGPT, Men et al. 2024, arXiv 2403.03853, eq. 1 (block influence).

    >>> block = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    >>> layers(torch.nn.Sequential(block(), block()), torch.randn(2, 4)).names
    ('0', '1')
    """
    examples = Inputs.examples(inputs)
    mine = private_copy(unwrap(model)).eval()
    watched = {name: _Watched(layer) for name, layer in _entries(mine)}
    for name, seen in watched.items():
        seen.beside = [w for other, w in watched.items() if other.rpartition(".")[0] == name.rpartition(".")[0]]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for number, example in enumerate(examples, 1):
            _run(mine, example, number)
            for seen in watched.values():
                seen.next_example()
    _tell_layers_from_stages(watched)
    fixed = {name: seen.why for name, seen in watched.items() if seen.why}
    return Layers({name: seen.influence for name, seen in watched.items() if not seen.why}, fixed)


def _tell_layers_from_stages(watched: Mapping[str, _Watched]) -> None:
    """Of layers that hold one another, either the outer or the inner ones may go."""
    for name, seen in watched.items():
        inner = [w for other, w in watched.items() if other.startswith(f"{name}.") and not (w.why or seen.why)]
        if any(w.follows for w in inner):
            seen.why = "it is a stage of layers, which are listed one by one"
        for part in inner if not seen.why else ():
            part.why = f"it is a part of {name}, which is listed"


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in nested arguments or results, in reading order."""
    if isinstance(value, Tensor):
        return value
    items: Sequence[Any] = ()
    if isinstance(value, Mapping):
        items = list(cast("Mapping[Any, Any]", value).values())
    elif isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
    return next((found for item in items if (found := first_tensor(item)) is not None), None)


def _run(model: nn.Module, example: Inputs, number: int) -> None:
    own = fresh(example)
    try:
        model(*own.args, **own.kwargs)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} refuses example {number}: {type(error).__name__}: {error} Pass inputs the model "
            "runs on: a tensor, a tuple of arguments, or a dict of keyword arguments."
        ) from error


def _entries(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers in stacks: not what is registered twice, where leaving out one place would leave the other."""
    often = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for path, stack in model.named_modules():
        if not isinstance(stack, STACKS):
            continue
        kinds = Counter(type(layer) for layer in stack)
        for key, layer in stack.named_children():
            whole = any(True for _ in layer.children()) and any(p.ndim >= 2 for p in layer.parameters())
            if whole and kinds[type(layer)] > 1 and often[id(layer)] == 1:
                yield f"{path}.{key}".lstrip("."), layer


class _Watched:
    """What a layer did over the example calls so far; `why` it cannot go, if so."""

    def __init__(self, layer: nn.Module) -> None:
        self.why, self.calls, self.similar, self.positions = "", 0, 0.0, 0
        self.made: weakref.ref[Tensor] | None = None
        self.beside: list[_Watched] = []
        self.follows = False
        """Was it ever given what a layer that may go, beside it, had returned?"""
        self.has_conv = any(isinstance(m, _CONVS) for m in layer.modules())
        self.given: Tensor | None = None
        self.before: Tensor | None = None
        layer.register_forward_pre_hook(self._begun, with_kwargs=True)
        layer.register_forward_hook(self._called, with_kwargs=True)

    @property
    def influence(self) -> float:
        return 1 - self.similar / max(self.positions, 1)

    def next_example(self) -> None:
        if not self.calls:
            self.why = self.why or "an example call does not reach it"
        self.calls = 0

    def _begun(self, _layer: nn.Module, args: Any, kwargs: Any) -> None:
        self.given = first_tensor((args, kwargs))
        self.before = None if self.given is None else self.given.clone()  # a layer may write to what it is given

    def _called(self, _layer: nn.Module, _args: Any, _kwargs: Any, result: Any) -> None:
        self.calls += 1
        given, made = self.given, first_tensor(result)
        self.why = self.why or _apart(given, made)
        self.made = None if made is None else weakref.ref(made)
        self.follows |= any(w.made is not None and w.made() is given and not w.why for w in self.beside)
        if self.before is not None and made is not None and not self.why:
            each = _cosines(self.before, made, 1 if self.has_conv and made.ndim > 2 else -1)
            self.similar += float(each.sum())
            self.positions += each.numel()
        self.given = self.before = None


def _apart(given: Tensor | None, made: Tensor | None) -> str:
    """Why the input and the output of a layer cannot be joined."""
    if given is None or made is None:
        return "it is given no tensor" if given is None else "it returns no tensor"
    if (given.shape, given.dtype) != (made.shape, made.dtype):
        return f"it turns {tuple(given.shape)} {given.dtype} into {tuple(made.shape)} {made.dtype}"
    if given.is_nested or given.layout != torch.strided or not given.is_floating_point() or not given.ndim:
        return "what it is given is no plain tensor of floats"
    return ""


def _cosines(given: Tensor, made: Tensor, dim: int) -> Tensor:
    """The cosine at each position; 1 where both are the same, zeros too."""
    same = (given == made).all(dim)
    return torch.where(same, 1.0, torch.cosine_similarity(given.float(), made.float(), dim=dim))
