"""Cut the user's own class: tensors replaced, and the integers of modules that sizes come from."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from prunus.graph.axes import Axes
from prunus.graph.fit import fit
from prunus.graph.graph import Graph, Mode
from prunus.graph.node import Node
from prunus.graph.private import plain_tensors, private_copy
from prunus.graph.trace import floats_of, integers_of
from prunus.graph.width import Keep, counts, length

_MOST_TRIES = 8
_CONVS = nn.modules.conv._ConvNd  # pyright: ignore[reportPrivateUsage]
_COMPUTED_FROM = (
    *("weight_orig", "weight_v"),
    *("parametrizations.weight.original", "parametrizations.weight.original1"),
)
"""Where torch.nn.utils keeps what a weight is computed from: masks and norms in the old form, parametrizations."""
_CHANNEL_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


@dataclass(frozen=True)
class Edit:
    """A number of a module that changes: attribute `key` (`name`, or `name.i` in a tuple) from `old` to `new`."""

    module: str
    key: str
    old: int | float
    new: int | float


def candidates(
    graph: Graph, model: nn.Module, state: Mapping[str, Tensor], keep: Keep, alive: Keep
) -> Iterator[nn.Module]:
    """Copies of the user's model with the cut state, most likely first; whether one is right is for a proof to say.

    Integers of known layers follow from the shapes of their weights. In other modules, integers that equal a changed
    size of that very module are changed; where that is ambiguous, the alternatives follow.
    """
    if any(_hooks(module) for module in model.modules()):
        warnings.warn(
            "The model has forward hooks: the smaller copy has them too, but what they closed over is still the "
            "original model's.",
            stacklevel=4,
        )
    sure, unsure = _edits(graph, model, state, keep, alive)
    for choice in itertools.islice(itertools.product(*unsure.values()), _MOST_TRIES):
        chosen = [edit for edits in choice for edit in edits]
        copy = private_copy(model, share=False)
        replace_state(copy, state, graph.aliases)
        apply_edits(copy, [*sure, *chosen, *_eps_edits(graph, copy, keep, alive)])
        yield copy


def _hooks(module: nn.Module) -> bool:
    """Has a module hooks that could have closed over the model? Those of `torch.nn.utils.prune` hold a name only."""
    hooks = [*vars(module)["_forward_hooks"].values(), *vars(module)["_forward_pre_hooks"].values()]
    return any(not isinstance(hook, BasePruningMethod) for hook in hooks)


def _edits(
    graph: Graph, model: nn.Module, state: Mapping[str, Tensor], keep: Keep, alive: Keep
) -> tuple[list[Edit], dict[tuple[str, str, int], list[list[Edit]]]]:
    """Edits that are clear, and for each ambiguous (class, attribute, value) the alternatives."""
    integers = integers_of(model)
    sizes = _changed_sizes(graph, keep, alive)
    state = {**state, **{name: state[source] for name, source in graph.aliases.items() if source in state}}
    known = {e for path, module in model.named_modules() for e in _known_layer(path, module, state, sizes)}
    settled = {(e.module, e.key) for e in known}
    for path, module in model.named_modules():  # of torch's recurrent ones all is known: num_layers is no width
        settled |= {(path, key) for key in integers[path] if _said_of_recurrent(path, module, state)}
    unsure: dict[tuple[str, str, int], list[list[Edit]]] = {}
    for (path, old), news in sizes.items():
        keys = [k for k, v in integers.get(path, {}).items() if v == old and (path, k) not in settled]
        changed = sorted(news - {old})
        if len(news) == 1 and len(keys) == 1:
            known |= {Edit(path, keys[0], old, new) for new in changed}
            continue
        for key in keys if changed else ():
            options = unsure.setdefault((type(model.get_submodule(path)).__name__, key, old), [[]])  # last: unchanged
            options[:-1] += [[] for _ in changed[len(options) - 1 :]]
            for option, new in zip(options, changed, strict=False):
                option.append(Edit(path, key, old, new))
    return list(known), unsure


def _changed_sizes(graph: Graph, keep: Keep, alive: Keep) -> dict[tuple[str, int], set[int]]:
    """(module, size in its code) -> what that size becomes, over all operations of that module."""
    before, after = counts(alive), counts(keep)
    found: dict[tuple[str, int], set[int]] = {}
    for mode in graph.modes:
        for node in mode.program.nodes:
            note = mode.inferred.notes.get(node.name)
            for axis in (*note.sizes.values(), *_channels(node, mode)) if note else ():
                found.setdefault((node.module, length(axis, before)), set()).add(length(axis, after))
    return found


def _eps_edits(graph: Graph, model: nn.Module, keep: Keep, alive: Keep) -> Iterator[Edit]:
    """Where a root mean square goes on dividing by the whole count: the floats of its module that equal its eps."""
    floats = floats_of(model)
    old, new = ({n.name: n for n in fit(graph, graph.eval, units).nodes} for units in (alive, keep))
    for fold in graph.eval.whole.folds:
        path, before, after = old[fold.eps].module, *(nodes[fold.eps].bound()[fold.arg] for nodes in (old, new))
        for key, value in floats.get(path, {}).items():
            if before != after and isclose(value, before):
                yield Edit(path, key, value, after)


def _channels(node: Node, mode: Mode) -> Axes:
    """The channels of a norm: without weights nothing else tells its module how many they are."""
    name = node.op.split(".")[1] if "." in node.op else ""
    return mode.inferred.of(node.args[0].name)[1:2] if name in ("batch_norm", "instance_norm", "group_norm") else ()


def _known_layer(
    path: str, module: nn.Module, state: Mapping[str, Tensor], sizes: Mapping[tuple[str, int], set[int]]
) -> Iterator[Edit]:
    """The integers of torch's own layers that say the shape of their weight, and their groups."""
    weight = _weight_of(path, module, state)
    said = {} if weight is None else _said(module, tuple(weight.shape), path, sizes)
    for key, new in {**said, **_said_of_recurrent(path, module, state)}.items():
        old = read_number(module, key)
        if old is not None and old != new:
            yield Edit(path, key, old, new)


def _weight_of(path: str, module: nn.Module, state: Mapping[str, Tensor]) -> Tensor | None:
    """What was cut of a layer's weight, or of the parameter of the same shape that the weight is computed from."""
    own = dict(module.named_parameters())
    for name in _COMPUTED_FROM:
        full = f"{path}.{name}".lstrip(".")
        if full in state and name in own:
            said = _said(module, tuple(own[name].shape), path, {})
            if all(read_number(module, key) in (None, size) for key, size in said.items()):
                return state[full]
    return state.get(f"{path}.weight".lstrip("."))


def _said(
    module: nn.Module, shape: tuple[int, ...], path: str, sizes: Mapping[tuple[str, int], set[int]]
) -> dict[str, int]:
    """The integers of a layer whose weight has this shape."""
    if isinstance(module, nn.Linear | nn.Embedding | _CONVS) and len(shape) < 2:
        return {}
    if isinstance(module, _CONVS):
        wide, narrow = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
        groups = min(sizes.get((path, module.groups), {module.groups}))
        return {wide: shape[0], narrow: shape[1] * groups, "groups": groups}
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, _CHANNEL_NORMS):
        return {"num_features": shape[0]}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {f"normalized_shape.{i}": size for i, size in enumerate(shape)}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": shape[0], "num_groups": min(sizes.get((path, module.num_groups), {module.num_groups}))}
    return {}


def _said_of_recurrent(path: str, module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, int]:
    """The integers of a recurrent layer or cell; every gate has as many rows as there are hidden units."""
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return {}
    end = "_l0" if isinstance(module, nn.RNNBase) else ""
    own = dict(module.named_parameters(recurse=False)).get(f"weight_ih{end}")
    inner, projection = (state.get(f"{path}.weight_{name}{end}".lstrip(".")) for name in ("ih", "hr"))
    if own is None or inner is None:
        return {}
    gates = own.shape[0] // module.hidden_size
    said = {"input_size": inner.shape[1], "hidden_size": inner.shape[0] // gates}
    return said if projection is None else {**said, "proj_size": projection.shape[0]}


def read_number(module: nn.Module, key: str) -> int | float | None:
    """The integer or float `name`, or `name.i` in a tuple; None where there is no plain number."""
    name, _, index = key.partition(".")
    value = vars(module).get(name)
    if index:
        value = value[int(index)] if isinstance(value, tuple) and int(index) < len(value) else None
    return value if type(value) in (int, float) else None


def apply_edits(model: nn.Module, edits: list[Edit]) -> None:
    for edit in edits:
        module = model.get_submodule(edit.module)
        name, _, index = edit.key.partition(".")
        if index:
            entries = list(vars(module)[name])
            entries[int(index)] = edit.new
            setattr(module, name, tuple(entries))
        else:
            setattr(module, name, edit.new)


def edits_between(graph: Graph, model: nn.Module) -> list[Edit]:
    """What changed in the integers and floats of a model since it was traced."""
    return [
        *_between(graph.integers, integers_of(model)),
        *(_between(graph.floats, floats_of(model)) if graph.rms_axes else ()),
    ]


def _between(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> list[Edit]:
    return [
        Edit(path, key, old, after[path][key])
        for path, entries in before.items()
        for key, old in entries.items()
        if path in after and key in after[path] and after[path][key] != old
    ]


def replace_state(model: nn.Module, state: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Put tensors in place of a model's own, by name; tied names get one and the same."""
    plain = {name for name, *_ in plain_tensors(model)}
    placed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        placed[name] = _place(model, name, tensor, plain)
    for name, source in aliases.items():
        if source in placed:
            _place(model, name, placed[source], plain)


def _place(model: nn.Module, name: str, tensor: Tensor, plain: set[str]) -> Tensor:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    old = getattr(owner, leaf)
    if isinstance(old, nn.Parameter) and not isinstance(tensor, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    if name in plain:
        vars(owner)[leaf] = tensor
    else:
        setattr(owner, leaf, tensor)
    return tensor
