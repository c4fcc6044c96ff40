"""A recipe run: the pipeline with what the recipe names, kept so that a killed run ends with the same files."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import RecipeError
from prunus.named import batches_of, criterion, densities_of, loss, made, named, schedule
from prunus.pipeline import plan_for, prune
from prunus.plan import Plan
from prunus.recipe import Recipe, Training
from prunus.recover import distillation, finetune
from prunus.report.report import report
from prunus.result import Result
from prunus.rounds import rounds_in
from prunus.save import save
from prunus.types import Loss, Progress, renamed


def unfinished(folder: str | Path) -> Path:
    """Where a run keeps what it has finished, until it ends."""
    return Path(folder) / ".run"


def finished(folder: str | Path, recipe: Recipe) -> bool:
    """Does the folder hold the end of a run of this very recipe?"""
    written = Path(folder) / "recipe.json"
    return written.exists() and not unfinished(folder).exists() and written.read_text() == _written(recipe)


def end(folder: str | Path) -> None:
    """Remove what was kept, first out of the way at once: half of it would look like a damaged run."""
    kept = unfinished(folder)
    shutil.rmtree(kept.with_name(".run.ended"), ignore_errors=True)
    if kept.exists():
        kept.rename(kept.with_name(".run.ended"))
    shutil.rmtree(kept.with_name(".run.ended"), ignore_errors=True)


def prune_by(
    recipe: Recipe, folder: str | Path, *, command: str | None = None, progress: Progress | None = None
) -> Result:
    """Do what the recipe says and save it to `folder`; the same call again goes on where a killed one was.

    Torch's generator is seeded before anything of the user's is called, so that the same model and data come each time.

    Raises `RecipeError` for a folder that cannot be written, or that holds a stopped run of another recipe.
    """
    kept = _begin(folder, recipe)
    (model, inputs), settings = _parts(recipe)
    result = prune(
        model,
        inputs,
        **settings,
        rounds=recipe.rounds,
        schedule=schedule(recipe.schedule),
        recover=_recover(recipe, model, settings["data"], settings["loss"], kept, progress),
        evaluate=None if recipe.evaluate is None else named(recipe.evaluate),
        run_dir=kept,
        progress=progress,
    )
    save(result, folder, command=command)
    report(folder, folder)
    (Path(folder) / "recipe.json").write_text(_written(recipe))
    end(folder)
    return result


def plan_of(recipe: Recipe) -> Plan:
    """The plan from the whole model to the budget in one round; nothing is cut, but every name is looked up."""
    (model, inputs), settings = _parts(recipe)
    for target in (recipe.evaluate, recipe.validate, recipe.recover):
        if isinstance(target, str):
            named(target)
    schedule(recipe.schedule)
    return plan_for(model, inputs, **settings)


def _begin(folder: str | Path, recipe: Recipe) -> Path:
    """Make the folder, with the recipe in it that a resumed run must have too."""
    kept = unfinished(folder)
    begun = kept / "recipe.json"
    try:
        kept.mkdir(parents=True, exist_ok=True)
        before: dict[str, Any] = json.loads(begun.read_text()) if begun.exists() else {}
        begun.write_text(_written(recipe))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{folder} cannot hold a run: {error}. Choose another folder with --out.") from None
    now = json.loads(_written(recipe))
    other = [key for key in now if before and before.get(key) != now[key]]
    if other:
        begun.write_text(json.dumps(before, indent=1) + "\n")
        raise RecipeError(
            f"{folder} holds a stopped run of another recipe: {', '.join(other)} differ. Resume with the recipe and "
            f"seed it began with, or remove {kept} to start afresh."
        )
    return kept


def _parts(recipe: Recipe) -> tuple[tuple[nn.Module, Any], dict[str, Any]]:
    """((model, inputs), settings), drawn in the same order by a run, a resumed run and a dry run."""
    torch.manual_seed(recipe.seed)
    pair = made(recipe.model)
    return pair, {
        "pattern": recipe.pattern,
        "budget": recipe.budget,
        "criterion": criterion(recipe.criterion),
        "scope": recipe.scope,
        "densities": densities_of(recipe.densities),
        "reduce": recipe.reduce,
        "keep_at_least": recipe.keep_at_least,
        "only": recipe.only,
        "skip": recipe.skip,
        "inexact": recipe.inexact,
        "seed": recipe.seed,
        "data": batches_of(recipe.data),
        "loss": loss(recipe.loss),
    }


def _recover(
    recipe: Recipe, model: nn.Module, data: Any, task: Loss, kept: Path, progress: Progress | None
) -> Callable[[nn.Module], nn.Module | None] | None:
    """`finetune` with the recipe's settings, resumable within a round, or the user's own function."""
    given = recipe.recover
    if given is None:
        return None
    if isinstance(given, str):
        return named(given)
    followed = _followed(given, model, task)
    validate = None if recipe.validate is None else named(recipe.validate)

    def recover(net: nn.Module) -> nn.Module:
        number = rounds_in(kept) + 1
        return finetune(
            net,
            data,
            followed,
            epochs=given.epochs,
            lr=given.lr,
            max_grad_norm=given.max_grad_norm,
            bf16=given.bf16,
            channels_last=given.channels_last,
            evaluate=validate,
            seed=recipe.seed,
            run_dir=kept,
            progress=renamed(f"train, round {number}", progress),
        )

    return recover


def _followed(given: Training, model: nn.Module, task: Loss) -> Loss:
    return distillation.loss(copy.deepcopy(model), task, weight=given.distill) if given.distill else task


def _written(recipe: Recipe) -> str:
    return json.dumps({**asdict(recipe), "pattern": str(recipe.pattern)}, indent=1) + "\n"
