"""`prunus export DIRECTORY`: a saved model as one file for another runtime, compared before it is kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.measure import opened
from prunus.cli.terminal import console, print_json, working
from prunus.export import export as exported


def export(
    source: Annotated[str, typer.Argument(metavar="DIRECTORY|MODULE:make", help="A saved directory, or a model.")],
    to: Annotated[str, typer.Option(help="The format: onnx.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="The file; DIRECTORY/model.onnx by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Write a model as one file, and compare it with PyTorch before it is kept.

    Example: `prunus export slim/ --to onnx`
    """
    (model,), inputs = opened([source])
    folder = Path(source) if Path(source).is_dir() else Path()
    with working("translate, and compare with PyTorch"):
        done = exported(model, inputs, out or folder / f"model.{to}", to=to)
    if as_json:
        return print_json({**asdict(done), "path": str(done.path)})
    return console.print(str(done), highlight=False, markup=False)
