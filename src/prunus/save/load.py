"""`load`: a saved model again, as the user's own class or as a `GraphModel`. No file can run code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunus.apply.surgery import Edit, apply_edits, read_number, replace_state
from prunus.errors import ArtifactError
from prunus.graph.configuration import Place, config_of, numbers_of, say
from prunus.graph.encode import decode_program
from prunus.graph.interpret import GraphModel
from prunus.graph.layout import in_format
from prunus.graph.private import state_of
from prunus.save.write import CONSTANT, FORMAT


def load(directory: str | Path, make_model: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Load a pruned model in eval mode, computing bit for bit what was saved.

    With `make_model`, which builds the original model (any weights), the result is of that class; every change to it
    is checked first. Without, it is a `GraphModel`, for which the user's code is not needed.

    Raises `ArtifactError` for files that are missing, damaged, or of another format or model.
    """
    folder = Path(directory)
    tensors = _weights(folder)
    graph = described(folder, "graph.json")
    model = None if make_model is None else make_model()
    with damage_named(folder, "graph.json" if model is None else "graph.json or surgery.json"):
        last = set(graph["channels_last"])
        state = {n: in_format(t, n in last) for n, t in tensors.items() if not n.startswith(CONSTANT)}
        if model is None:
            return _as_graph(graph, state, tensors).eval()
        return _as_class(folder, graph, state, model).eval()


def class_of(directory: str | Path) -> str | None:
    """The name of the class a saved model can be loaded onto; None where only its graph was saved."""
    folder = Path(directory)
    surgery = described(folder, "surgery.json")
    with damage_named(folder, "surgery.json"):
        return surgery["class"]


@contextmanager
def damage_named(folder: Path, name: str) -> Generator[None]:
    """Whatever the entries of a JSON file of ours lead to when they are not as written."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ArtifactError(
            f"{folder}: {name} is damaged ({type(error).__name__}: {error}): an entry is missing or not as prunus "
            "writes it, though its format and weights are right. Copy or save the model again."
        ) from error


def _weights(folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no model.safetensors; expected a directory written by prunus.save.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged or cut short ({error}); copy or save it again.") from error


def described(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of the artifact, of our format and belonging to these weights."""
    try:
        data = json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / name} is missing or no JSON ({error}); save the model again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:  # pyright: ignore[reportUnknownMemberType]
        raise ArtifactError(f"{folder / name} is not of the format {FORMAT!r}; it was written by something else.")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if data.get("weights") != digest:  # pyright: ignore[reportUnknownMemberType]
        raise ArtifactError(
            f"{folder / name} belongs to other weights than model.safetensors: one of the files was changed."
        )
    return data  # pyright: ignore[reportUnknownVariableType]


def _as_graph(graph: dict[str, Any], state: dict[str, Tensor], tensors: Mapping[str, Tensor]) -> GraphModel:
    programs = graph["programs"]
    if programs["eval"] is None:
        raise ArtifactError(
            f"The path of a {graph['model_class']} depends on values, so that no graph could be saved: call "
            "load(directory, make_model) with a function that builds the original model."
        )
    train = None if programs["train"] is None else decode_program(programs["train"])
    parameters: dict[str, bool] = graph["parameters"]
    given = {n: t.requires_grad_(bool(parameters[n])) if n in parameters else t for n, t in state.items()}
    return GraphModel(
        (decode_program(programs["eval"]), train),
        given,
        parameters,
        {n.removeprefix(CONSTANT): t for n, t in tensors.items() if n.startswith(CONSTANT)},
        graph["aliases"],
        graph["hidden"],
        [tuple(path) for path in graph["paths"]],
        {tuple(path): value for path, value in graph["settings"]},
    )


def _as_class(folder: Path, graph: dict[str, Any], state: dict[str, Tensor], model: nn.Module) -> nn.Module:
    surgery = described(folder, "surgery.json")
    if surgery["class"] is None:
        raise ArtifactError(
            f"The class {graph['model_class']!r} could not be cut to this shape, so only the graph was saved: call "
            "load(directory) without make_model."
        )
    if type(model).__name__ != surgery["class"]:
        raise ArtifactError(
            f"make_model() gave a {type(model).__name__}; expected the original model, a {surgery['class']}."
        )
    edits = [_checked_edit(folder, model, entry) for entry in surgery["entries"]]
    widths = dict(_checked_width(folder, model, entry) for entry in surgery.get("config", ()))
    _check_state(folder, model, state, graph["aliases"])
    apply_edits(model, edits)
    replace_state(model, state, graph["aliases"])
    say(model, widths)
    return model


def _checked_edit(folder: Path, model: nn.Module, entry: Any) -> Edit:
    """An entry of surgery.json: the number must exist, be plain and have the old value; a size may not grow."""
    try:
        edit = Edit(str(entry["module"]), str(entry["attribute"]), entry["old"], entry["new"])
        found = read_number(model.get_submodule(edit.module), edit.key)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / 'surgery.json'} names a module or entry that is not there ({error})."
        ) from error
    kinds = (type(edit.old), type(edit.new))
    if not (kinds == (int, int) and 0 < edit.new <= edit.old) and not (kinds == (float, float) and isfinite(edit.new)):
        raise ArtifactError(
            f"{folder / 'surgery.json'}: {edit.module}.{edit.key} from {edit.old!r} to {edit.new!r}; sizes are "
            "integers and only shrink, and what else changes is a finite float."
        )
    if found != edit.old:
        raise ArtifactError(
            f"{edit.module}.{edit.key} of make_model() is {found!r}; the saved model started from {edit.old}."
        )
    return edit


def _checked_width(folder: Path, model: nn.Module, entry: Any) -> tuple[Place, int]:
    """A number of the configuration: it must have the old value, or be unset as then, and not grow."""
    place: Place = tuple(entry["place"])
    old, new = entry["old"], entry["new"]
    named = bool(place) and all(type(key) is int or re.fullmatch(r"[a-zA-Z]\w*", str(key)) for key in place)
    if not named or type(new) is not int or new <= 0 or not (old is None or (type(old) is int and new <= old)):
        raise ArtifactError(
            f"{folder / 'surgery.json'}: config {entry['place']!r} from {old!r} to {new!r}; sizes are integers and "
            "only shrink."
        )
    found = numbers_of(config_of(model)).get(place)
    if found != old:
        raise ArtifactError(
            f"config.{'.'.join(map(str, place))} of make_model() is {found!r}; the saved model started from {old}."
        )
    return place, new


def _check_state(folder: Path, model: nn.Module, state: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    found = state_of(model)
    every = {*found.tensors, *found.aliases}
    wanted = {*state, *aliases}
    if every != wanted:
        odd = sorted(every ^ wanted)[:4]
        raise ArtifactError(
            f"make_model() and {folder} differ in state: {', '.join(odd)}. Build the model as it was before pruning."
        )
    for name, tensor in state.items():
        whole = tuple(found.tensors[name if name in found.tensors else found.aliases[name]].shape)
        if len(whole) != tensor.ndim or any(small > size for small, size in zip(tensor.shape, whole, strict=True)):
            raise ArtifactError(
                f"{name!r} is {tuple(tensor.shape)} in {folder}, but only {whole} in make_model(); sizes only shrink."
            )
