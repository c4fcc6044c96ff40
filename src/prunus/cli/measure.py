"""`prunus measure A [B]`: what saved models, or models of the user's, cost, side by side."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table
from torch import nn

from prunus.cli.terminal import console, given, print_json, say, shown_progress
from prunus.errors import RecipeError
from prunus.measure import measure as measured
from prunus.named import made
from prunus.report.report import report
from prunus.result import shown
from prunus.save import class_of, load, load_inputs
from prunus.types import Inputs, Measurement

METRICS = (
    "params nonzeros macs effective_macs bytes compressed_bytes latency_ms throughput memory_bytes energy_j".split()
)


def measure(
    first: Annotated[str, typer.Argument(metavar="A", help="A saved directory, or MODULE:make.")],
    second: Annotated[str | None, typer.Argument(metavar="B", help="Another, timed call by call in turn.")] = None,
    metrics: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(METRICS),
    batch: Annotated[str | None, typer.Option(help="Batch sizes for the timing, such as 1,64.")] = None,
    threads: Annotated[str | None, typer.Option(help="Thread counts for the timing, such as 1,2.")] = None,
    null: Annotated[bool, typer.Option("--null", help="Time B twice: what the machine's noise alone makes.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page about it to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure one model, or two side by side, on the same example inputs.

    A saved directory is loaded onto the class of a MODULE:make beside it where that is its class, else as its graph.

    Examples:

    - `prunus measure slim/`

    - `prunus measure slim/ my_package.nets:make --metrics macs,latency_ms --batch 1,64 --threads 1`
    """
    if null and second is None:
        raise RecipeError("--null times B a second time; name a second model to compare with.")
    models, inputs = opened([first] if second is None else [first, second])
    with shown_progress() as progress:
        figures = measured(
            models[0],
            inputs,
            metrics.replace(" ", "").split(","),
            against=models[1] if second is not None else None,
            batch=_numbers(batch, "--batch"),
            threads=_numbers(threads, "--threads"),
            null=null,
            progress=progress,
        )
    other = f"{second} (B)" if second == first else str(second)
    names = {"model": first, "against": other, "null": f"{other} again"}
    if html is not None:
        by_name = {names[s]: [f for f in figures if f.subject == s] for s in ("against", "model", "null")}
        page = report({name: taken for name, taken in by_name.items() if taken}, html, command=given())
        say(f"wrote {page}")
    if as_json:
        return print_json([asdict(figure) for figure in figures])
    return console.print(_table(figures, names))


def opened(targets: Sequence[str]) -> tuple[list[nn.Module], Inputs]:
    """The models of saved directories and of MODULE:make, and the example inputs of the first that has its own."""
    torch.manual_seed(0)
    own = {target: made(target) for target in targets if _is_name(target)}
    classes = [model for model, _ in own.values()]
    models = [own[target][0] if target in own else _loaded(target, classes) for target in targets]
    inputs = next((pair[1] for pair in own.values()), None)
    return models, load_inputs(targets[0]) if inputs is None else Inputs.examples(inputs)[0]


def _is_name(target: str) -> bool:
    return ":" in target and not Path(target).exists()


def _loaded(directory: str, classes: Sequence[nn.Module]) -> nn.Module:
    if not Path(directory).is_dir():
        raise RecipeError(f"{directory!r} is neither a saved directory nor of the form package.module:make.")
    name = class_of(directory)
    same = next((model for model in classes if type(model).__name__ == name), None)
    return load(directory, None if same is None else lambda: copy.deepcopy(same))


def _numbers(text: str | None, option: str) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise RecipeError(f"{option} {text!r}: expected whole numbers separated by commas, such as 1,64.") from None


def _table(figures: Sequence[Measurement], names: dict[str, str]) -> Table:
    rows: dict[str, dict[str, str]] = {}
    for figure in figures:
        rows.setdefault(_label(figure), {})[figure.subject] = shown(figure)
    subjects = list(dict.fromkeys(figure.subject for figure in figures))
    table = Table()
    table.add_column("metric")
    for subject in subjects:
        table.add_column(escape(names[subject]), justify="right")
    for label, cells in rows.items():
        table.add_row(label, *(cells.get(subject, "") for subject in subjects))
    return table


def _label(figure: Measurement) -> str:
    """The metric, with what it was taken at where that is more than the example."""
    if figure.threads is None:
        return figure.metric
    return f"{figure.metric}, batch {figure.batch}, {figure.threads} thread{'s' if figure.threads > 1 else ''}"
