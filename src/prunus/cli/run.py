"""`prunus run`: an embedded task, or a recipe of the user's."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.terminal import console, given, print_json, say, shown_progress, working
from prunus.errors import RecipeError
from prunus.recipe import Recipe, read
from prunus.report.read import read_facts
from prunus.report.report import report
from prunus.result import ZEROS
from prunus.running import finished, plan_of, prune_by, unfinished

TASKS = ("digits", "digits-sparse")


def run(
    what: Annotated[str, typer.Argument(metavar="TASK|RECIPE", help="digits, digits-sparse, or a recipe.yaml.")],
    seed: Annotated[int | None, typer.Option(help="Of data order, weights and scores; overrides the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where all is saved; runs/NAME by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan and what it will cost.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped or killed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of tables.")] = False,
) -> None:
    """Prune, recover, measure and save: an embedded task, or what a recipe says.

    Examples:

    - `prunus run digits --seed 1 --out slim/`

    - `prunus run recipe.yaml --dry-run`

    - `prunus run recipe.yaml --resume`
    """
    folder = out or Path("runs") / Path(what).stem
    if what in TASKS:
        if dry_run:
            raise RecipeError(f"--dry-run is for recipes: the plan of {what} depends on the network it trains first.")
        return _task(what, seed or 0, folder, resume, as_json)
    if not what.endswith((".yaml", ".yml")):
        raise RecipeError(f"There is no task {what!r}; expected one of {', '.join(TASKS)}, or a recipe.yaml.")
    recipe = read(what)
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    return _plan(recipe, as_json) if dry_run else _recipe(recipe, folder, resume, as_json)


def _plan(recipe: Recipe, as_json: bool) -> None:
    """One round from the whole model to the budget; nothing is cut."""
    with working("make the model, trace, score"):
        plan = plan_of(recipe)
    kept = {name: [mask.numel(), int(mask.sum())] for name, mask in plan.keep.items()}
    if as_json:
        return print_json({"costs": {k: list(v) for k, v in plan.costs.items()}, "kept": kept})
    return console.print(str(plan), highlight=False, markup=False)


def _recipe(recipe: Recipe, folder: Path, resume: bool, as_json: bool) -> None:
    started = time.monotonic()
    if resume and finished(folder, recipe):
        say(f"{folder} holds the finished run of this recipe; nothing is left to do.")
        return print_json(read_facts(folder)) if as_json else None
    with _stoppable(folder, resume), shown_progress() as progress:
        result = prune_by(recipe, folder, command=given(), progress=progress)
    page = folder / "report.html"
    if as_json:
        return print_json(read_facts(folder))
    console.print(str(result), highlight=False, markup=False)
    return say(f"saved to {folder}, the page is {page}; {time.monotonic() - started:.0f} s")


def _task(task: str, seed: int, folder: Path, resume: bool, as_json: bool) -> None:
    from prunus.table import comparison
    from prunus.tasks import demo, sparse
    from prunus.tasks.rows import BATCH, DENSE

    started = time.monotonic()
    with _stoppable(folder, resume), shown_progress() as progress:
        done = {"digits": demo.run, "digits-sparse": sparse.run}[task](seed, folder, progress)
    page = report(folder, folder)
    if as_json:
        return print_json(read_facts(folder))
    images = done.rows[DENSE].correct.numel()
    title = f"{task}, seed {seed}, {images} test images; latency: batch {BATCH}, 1 thread, interleaved with dense"
    console.print(comparison(done.rows, title))
    if done.result.plan.groups.laid:
        console.print(ZEROS, highlight=False)
    return say(f"saved to {folder}, the page is {page}; {time.monotonic() - started:.0f} s")


@contextmanager
def _stoppable(folder: Path, resume: bool) -> Generator[None]:
    """Refuse to mix with a stopped run, and say how to go on after Ctrl-C."""
    if unfinished(folder).exists() and not resume:
        raise RecipeError(
            f"{folder} holds a run that was stopped. Go on with it by --resume, or remove {unfinished(folder)} to "
            "start afresh."
        )
    try:
        yield
    except KeyboardInterrupt:
        say(f"Stopped. What is finished is kept; go on with: {given()}{'' if resume else ' --resume'}")
        raise typer.Exit(130) from None
