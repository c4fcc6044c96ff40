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
from prunus.pipeline import plan_for, prune
from prunus.plan import Plan
from prunus.recipe import LOSSES, Recipe, Training, batches_of, chosen, criterion_of, made, named, schedule_of
from prunus.recover import distillation, finetune
from prunus.result import Result
from prunus.save import save
from prunus.types import Loss, Progress


def unfinished(folder: str | Path) -> Path:
    """Where a run keeps what it has finished, until it ends."""
    return Path(folder) / ".run"


def finished(folder: str | Path, recipe: Recipe) -> bool:
    """Does the folder hold the end of a run of this very recipe?"""
    written = Path(folder) / "recipe.json"
    return written.exists() and not unfinished(folder).exists() and written.read_text() == _written(recipe)


def prune_by(
    recipe: Recipe, folder: str | Path, *, command: str | None = None, progress: Progress | None = None
) -> Result:
    """Do what the recipe says and save it to `folder`; the same call again goes on where a killed one was.

    torch's generator is seeded before the user's `make` is called, so that it builds the same model each time.
    """
    settings = _settings(recipe)
    model, inputs = _made(recipe)
    kept = unfinished(folder)
    result = prune(
        model,
        inputs,
        **settings,
        rounds=recipe.rounds,
        schedule=schedule_of(recipe),
        recover=_recover(recipe, model, settings["data"], settings["loss"], kept, progress),
        evaluate=None if recipe.evaluate is None else named(recipe.evaluate),
        run_dir=kept,
        progress=progress,
    )
    save(result, folder, command=command)
    (Path(folder) / "recipe.json").write_text(_written(recipe))
    shutil.rmtree(kept, ignore_errors=True)
    return result


def plan_of(recipe: Recipe) -> Plan:
    """The plan from the whole model to the budget in one round; nothing is cut."""
    return plan_for(*_made(recipe), **_settings(recipe))


def _made(recipe: Recipe) -> tuple[nn.Module, Any]:
    torch.manual_seed(recipe.seed)
    return made(recipe.model)


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "pattern": recipe.pattern,
        "budget": recipe.budget,
        "criterion": criterion_of(recipe),
        "scope": recipe.scope,
        "reduce": recipe.reduce,
        "keep_at_least": recipe.keep_at_least,
        "only": recipe.only,
        "skip": recipe.skip,
        "inexact": recipe.inexact,
        "seed": recipe.seed,
        "data": batches_of(recipe.data),
        "loss": chosen(recipe.loss, LOSSES, "loss"),
    }


def _recover(
    recipe: Recipe, model: nn.Module, data: Any, loss: Loss, kept: Path, progress: Progress | None
) -> Callable[[nn.Module], nn.Module | None] | None:
    """`finetune` with the recipe's settings, resumable within a round, or the user's own function."""
    given = recipe.recover
    if given is None:
        return None
    if isinstance(given, str):
        return named(given)
    followed = _followed(given, model, loss)
    validate = None if recipe.validate is None else named(recipe.validate)
    return lambda net: finetune(
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
        progress=progress,
    )


def _followed(given: Training, model: nn.Module, loss: Loss) -> Loss:
    if not given.distill:
        return loss
    if not 0 < given.distill <= 1:
        raise RecipeError(f"recover: distill: {given.distill} is a weight; expected 0 (off) to 1.")
    return distillation.loss(copy.deepcopy(model), loss, weight=given.distill)


def _written(recipe: Recipe) -> str:
    return json.dumps({**asdict(recipe), "pattern": str(recipe.pattern)}, indent=1) + "\n"
