"""The `prunus` command: its sub-commands, and what becomes of errors."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

from prunus.cli.export import export
from prunus.cli.init import init
from prunus.cli.measure import measure
from prunus.cli.report import report
from prunus.cli.run import run
from prunus.cli.scan import scan
from prunus.cli.terminal import failed, quiet_stdout
from prunus.errors import PrunusError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Prune neural networks: really smaller, proven equal, every number measured.",
)
for command in (run, scan, measure, export, report, init):
    app.command()(command)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the log; may stand anywhere.")] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """Run the command. Errors are shown without a traceback, but with `--debug`."""
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(name)s: %(message)s")
    if not debug:
        sys.excepthook = _unexpected
    try:
        with quiet_stdout("--json" in sys.argv):
            typer.main.get_command(app)()  # not app(), which puts an exception hook of its own in place
    except PrunusError as error:
        if debug:
            raise
        failed(error)
        raise SystemExit(2) from None


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An error that is not ours: most likely of the user's own code, so say where it arose."""
    if issubclass(kind, KeyboardInterrupt):
        return
    frames = traceback.extract_tb(trace)
    last = next((f for f in reversed(frames) if not _is_of_a_library(f.filename)), frames[-1])
    where = "" if isinstance(error, SyntaxError) else f" (in {last.name}, {last.filename}:{last.lineno})"
    failed(error, f"{where}. Run again with --debug for the traceback.")


def _is_of_a_library(filename: str) -> bool:
    """Is this not the user's own code?"""
    return filename.startswith("<") or any(part in ("site-packages", "prunus") for part in Path(filename).parts)
