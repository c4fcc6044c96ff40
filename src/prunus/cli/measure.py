"""`prunus measure A [B]`: what saved models, or models of the user's, cost, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from torch import nn

from prunus.cli.terminal import console, print_json, say, shown_progress
from prunus.errors import RecipeError
from prunus.measure import measure as measured
from prunus.recipe import made
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
    models, inputs = opened([first] if second is None else [first, second])
    with shown_progress() as progress:
        figures = measured(
            models[0],
            inputs,
            metrics.split(","),
            against=models[1] if second is not None else None,
            batch=_numbers(batch, "--batch"),
            threads=_numbers(threads, "--threads"),
            null=null,
            progress=progress,
        )
    names = {"model": first, "against": second or "", "null": f"{second} again"}
    if html is not None:
        by_name = {names[s]: [f for f in figures if f.subject == s] for s in ("against", "model", "null")}
        page = report(
            {name: taken for name, taken in by_name.items() if taken}, html, command=f"prunus measure {first}"
        )
        say(f"wrote {page}")
    if as_json:
        return print_json([asdict(figure) for figure in figures])
    return console.print(_table(figures, names))


def opened(targets: Sequence[str]) -> tuple[list[nn.Module], Inputs]:
    """The models of saved directories and of MODULE:make, and the example inputs of the first that has its own."""
    own = {target: made(target) for target in targets if _is_name(target)}
    makes: list[Callable[[], nn.Module]] = [lambda name=name: made(name)[0] for name in own]
    models = [own[target][0] if target in own else _loaded(target, makes) for target in targets]
    inputs = next((pair[1] for pair in own.values()), None)
    return models, load_inputs(targets[0]) if inputs is None else Inputs.examples(inputs)[0]


def _is_name(target: str) -> bool:
    return ":" in target and not Path(target).exists()


def _loaded(directory: str, makes: Sequence[Callable[[], nn.Module]]) -> nn.Module:
    name = class_of(directory)
    make = next((make for make in makes if type(make()).__name__ == name), None)
    return load(directory, make)


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
