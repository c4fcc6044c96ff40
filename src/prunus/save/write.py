"""`save`: write a result as files that run no code."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prunus.apply.surgery import edits_between
from prunus.graph.configuration import config_of, numbers_of
from prunus.graph.encode import encode_program
from prunus.graph.fit import fit, fit_constants
from prunus.graph.graph import Graph
from prunus.graph.interpret import GraphModel
from prunus.graph.layout import is_channels_last
from prunus.graph.nest import input_settings, input_tensors
from prunus.graph.private import state_of
from prunus.graph.width import Keep
from prunus.report.facts import FORMAT, Baseline, facts_of_result
from prunus.result import Result

WEIGHTS = "model.safetensors"
CONSTANT = "constant:"
"""Prefix, in `model.safetensors`, of tensors that are no state of the model."""


def save(
    result: Result,
    directory: str | Path,
    *,
    rows: Mapping[str, Baseline] | None = None,
    command: str | None = None,
) -> None:
    """Write the pruned model, its plan and its figures to `directory`; files of that name are replaced.

    `rows` are the baselines it was compared with, the dense model first, and `command` is what was run: both for the
    page that `report` makes of the directory.

    Nothing is replaced before all is written. Then the files are moved one by one, the weights last: where that is
    cut off, `load` refuses the directory, for its other files belong to weights that are not there.

    Of a model whose path depends on values no graph is written: `load` needs its class.

    Raises `ArtifactError` where the graph holds an operation that files may not name.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        _write(result, Path(part), rows, command)
        for path in sorted(Path(part).iterdir(), key=lambda path: (path.name == WEIGHTS, path.name)):
            path.chmod(0o644)  # safetensors writes files that others cannot read
            path.replace(folder / path.name)


def _write(result: Result, folder: Path, rows: Mapping[str, Baseline] | None, command: str | None) -> None:
    graph, keep, model = result.graph, result.plan.left, result.model
    state = state_of(model).tensors
    constants = fit_constants(graph, keep)
    tensors = {**state, **{CONSTANT + name: t for name, t in constants.items()}}
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    _json(folder / "graph.json", _graph(graph, keep, state, digest))
    _json(folder / "surgery.json", _surgery(graph, model, digest))
    result.plan.save(folder)
    _json(folder / "report.json", {"weights": digest, **facts_of_result(result, rows, command)})


def _graph(graph: Graph, keep: Keep, state: Mapping[str, Tensor], digest: str) -> dict[str, Any]:
    programs = {"eval": None if graph.depends else graph.eval, "train": graph.train}
    settings = {
        path: v
        for path, v in input_settings(graph.inputs).items()
        if v is None or isinstance(v, bool | int | float | str)
    }
    return {
        "format": FORMAT,
        "weights": digest,
        "model_class": graph.model_class,
        "programs": {k: encode_program(fit(graph, mode, keep)) if mode else None for k, mode in programs.items()},
        "paths": [list(path) for path in input_tensors(graph.inputs)],
        "settings": [[list(path), value] for path, value in settings.items()],
        "parameters": {name: t.requires_grad for name, t in state.items() if name in graph.parameters},
        "aliases": dict(graph.aliases),
        "hidden": sorted(graph.hidden),
        "channels_last": [name for name, t in state.items() if is_channels_last(t)],
        "examples": [
            [list(t.shape), str(t.dtype).removeprefix("torch."), *_range(t)]
            for t in input_tensors(graph.examples[0]).values()
        ],
    }


def _range(tensor: Tensor) -> list[int]:
    """The least and the largest of whole numbers, which may be indices; the values themselves are the user's own."""
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return [int(tensor.min()), int(tensor.max())] if whole and tensor.numel() else []


def _surgery(graph: Graph, model: nn.Module, digest: str) -> dict[str, Any]:
    """Which numbers of the user's class and its configuration change; `class` is None where it could not be cut."""
    if isinstance(model, GraphModel):
        return {"format": FORMAT, "weights": digest, "class": None, "entries": [], "config": []}
    entries = [
        {"module": e.module, "attribute": e.key, "old": e.old, "new": e.new} for e in edits_between(graph, model)
    ]
    return {
        "format": FORMAT,
        "weights": digest,
        "class": graph.model_class,
        "entries": entries,
        "config": [
            {"place": list(place), "old": graph.config.get(place), "new": value}
            for place, value in numbers_of(config_of(model)).items()
            if value is not None and value != graph.config.get(place)
        ],
    }


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
