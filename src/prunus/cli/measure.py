"""`prunus measure A [B]`: what saved models, or models of the user's, cost, side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from torch import nn

from prunus.cli.terminal import console, print_json, shown_progress
from prunus.measure import measure as measured
from prunus.recipe import made
from prunus.result import shown
from prunus.save import load, load_inputs
from prunus.types import Inputs, Measurement

METRICS = ("params", "nonzeros", "macs", "effective_macs", "bytes", "compressed_bytes", "latency_ms")


def measure(
    first: Annotated[str, typer.Argument(metavar="A", help="A saved directory, or MODULE:make.")],
    second: Annotated[str | None, typer.Argument(metavar="B", help="Another, timed call by call in turn.")] = None,
    metrics: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(METRICS),
    threads: Annotated[int | None, typer.Option(help="For the timing; torch's own number by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure one model, or two side by side, on the same example inputs.

    Examples:

    - `prunus measure slim/`

    - `prunus measure slim/ my_package.nets:make --metrics macs,latency_ms --threads 1`
    """
    model, inputs = opened(first)
    against = None if second is None else opened(second)[0]
    with shown_progress() as progress:
        figures = measured(model, inputs, metrics.split(","), against=against, threads=threads, progress=progress)
    if as_json:
        return print_json([asdict(figure) for figure in figures])
    return console.print(_table(figures, first, second))


def opened(target: str) -> tuple[nn.Module, Inputs]:
    """A saved model with drawn inputs, or what `make` gives."""
    if ":" in target and not Path(target).exists():
        model, inputs = made(target)
        return model, Inputs.examples(inputs)[0]
    return load(target), load_inputs(target)


def _table(figures: tuple[Measurement, ...], first: str, second: str | None) -> Table:
    names: dict[str, Any] = {"model": first, "against": second}
    table = Table()
    table.add_column("metric")
    subjects = list(dict.fromkeys(figure.subject for figure in figures))
    for subject in subjects:
        table.add_column(escape(str(names.get(subject) or subject)), justify="right")
    for metric in dict.fromkeys(figure.metric for figure in figures):
        cells = [shown(next(f for f in figures if (f.metric, f.subject) == (metric, s))) for s in subjects]
        table.add_row(metric, *cells)
    return table
