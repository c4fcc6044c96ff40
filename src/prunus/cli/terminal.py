"""What the terminal sees: tables on stdout, progress and notes on stderr, errors without tracebacks."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from prunus.report.facts import finite
from prunus.types import Progress

WIDE = 160
"""Columns of a table where the output is no terminal."""
console = Console(width=None if sys.stdout.isatty() else WIDE)
notes = Console(stderr=True, width=None if sys.stderr.isatty() else WIDE)


def say(text: str) -> None:
    notes.print(escape(text), highlight=False, soft_wrap=True)


def failed(error: BaseException, hint: str = "") -> None:
    name = type(error).__name__
    notes.print(f"[red]{escape(name)}[/red]: {escape(str(error))}{escape(hint)}", highlight=False, soft_wrap=True)


def given() -> str:
    """The command as it was typed, quoted where a shell needs it."""
    return shlex.join(["prunus", *sys.argv[1:]])


def print_json(value: Any) -> None:
    """JSON alone on stdout: what the user's code prints meanwhile goes to stderr (`quiet_stdout`)."""
    print(json.dumps(finite(value), indent=1, allow_nan=False), file=sys.__stdout__)


@contextmanager
def quiet_stdout(on: bool) -> Generator[None]:
    with redirect_stdout(sys.stderr) if on else nullcontext():
        yield


@contextmanager
def working(what: str) -> Generator[None]:
    """Say what takes a while, where no steps can be counted."""
    if not notes.is_terminal:
        say(what)
        yield
        return
    with notes.status(escape(what)):
        yield


@contextmanager
def shown_progress() -> Generator[Progress]:
    """Progress bars with the time left; a plain line for each step where stderr is no terminal."""
    if not notes.is_terminal:
        told: set[str] = set()

        def tell(what: str, _done: int, total: int) -> None:
            if what not in told:
                told.add(what)
                say(f"{what} ({total} steps)")

        yield tell
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=notes) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show
