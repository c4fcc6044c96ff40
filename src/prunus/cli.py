"""The command line: `prunus run digits`, `prunus scan MODULE:make`."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from prunus.errors import PrunusError, RecipeError
from prunus.types import Progress

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
except ModuleNotFoundError as error:
    raise SystemExit(f"The prunus command needs {error.name}: pip install 'prunus[cli]'.") from None

app = typer.Typer(no_args_is_help=True, add_completion=True, help="Prune neural networks: really smaller, measured.")
console = Console(width=None if sys.stdout.isatty() else 160)
TASKS = ("digits", "digits-sparse")


@app.command()
def run(
    task: Annotated[str, typer.Argument(help="An embedded task: digits (channels) or digits-sparse (zeros).")],
    seed: Annotated[int, typer.Option(help="Seed of data order, initial weights and scores.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where the pruned model is saved; runs/TASK by default.")] = None,
) -> None:
    """Train, prune, recover, measure and save an embedded task.

    Example: prunus run digits --seed 1 --out slim/
    """
    if task not in TASKS:
        raise RecipeError(f"There is no task {task!r}; expected one of {', '.join(TASKS)}.")
    from prunus.result import ZEROS
    from prunus.table import comparison
    from prunus.tasks import demo, sparse
    from prunus.tasks.rows import BATCH, DENSE

    started, out = time.monotonic(), out or Path("runs") / task
    with shown_progress() as progress:
        done = {"digits": demo.run, "digits-sparse": sparse.run}[task](seed, out, progress)
    images = done.rows[DENSE].correct.numel()
    title = f"{task}, seed {seed}, {images} test images; latency: batch {BATCH}, 1 thread, interleaved with dense"
    console.print(comparison(done.rows, title))
    if done.result.plan.groups.laid:
        console.print(ZEROS)
    console.print(f"saved to {escape(str(out))}; {time.monotonic() - started:.0f} s")


@app.command()
def scan(
    target: Annotated[str, typer.Argument(metavar="MODULE:make", help="A function make() -> (model, inputs).")],
) -> None:
    """Show what can be pruned, what goes together, and what is fixed and why.

    Example: prunus scan my_package.nets:make
    """
    from prunus.graph.group import group
    from prunus.graph.trace import trace
    from prunus.table import fixed_table, group_tree

    graph = trace(*made(target))
    console.print(escape(str(graph)), highlight=False)
    console.print(group_tree(group(graph)))
    console.print(fixed_table(graph))


def made(target: str) -> tuple[Any, Any]:
    """Call the `make` that `module:attribute` names."""
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise RecipeError(f"{target!r} is not of the form package.module:make, such as my_nets:make.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise RecipeError(
            f"{target!r}: no module {missing.name!r} here or installed; run from its folder."
        ) from missing
    if not hasattr(found, attribute):
        raise RecipeError(f"{target!r}: module {module!r} has no {attribute!r}.")
    pair = getattr(found, attribute)()
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise RecipeError(f"{target}() returned a {type(pair).__name__}; expected (model, inputs).")
    return pair


@contextmanager
def shown_progress() -> Generator[Progress]:
    """Progress bars with the time left; a plain line for each step where the output is no terminal."""
    if not console.is_terminal:
        told: set[str] = set()

        def tell(what: str, _done: int, total: int) -> None:
            if what not in told:
                told.add(what)
                console.print(f"{escape(what)} ({total} steps)", highlight=False)

        yield tell
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def main() -> None:
    """Run the command; errors of prunus are shown without a traceback."""
    try:
        app()
    except PrunusError as error:
        console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", highlight=False)
        raise SystemExit(2) from None
