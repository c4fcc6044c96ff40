"""`prunus report DIRECTORY`: the page about a saved run, made again from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.terminal import say
from prunus.report.report import report as written


def report(
    directory: Annotated[Path, typer.Argument(help="Where a run was saved.")],
    out: Annotated[Path | None, typer.Option(help="The page; DIRECTORY/report.html by default.")] = None,
) -> None:
    """Write the page about a saved run: one HTML file that loads nothing from anywhere.

    Example: `prunus report slim/`
    """
    say(f"wrote {written(directory, out or directory / 'report.html')}")
