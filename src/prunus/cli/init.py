"""`prunus init`: a recipe to begin with, and a module of the user's side that runs as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.terminal import say
from prunus.errors import RecipeError

RECIPE = """\
# What `prunus run recipe.yaml` does; see it first with --dry-run. Names are package.module:attr, found from here too.
model: my_task:make          # make() -> (trained model, example inputs)
data: my_task:batches        # batches, or a function that returns them: a DataLoader, a list
loss: cross_entropy          # or mse, or my_task:loss, (model, batch) -> scalar
validate: my_task:validated  # (model) -> one score a sample: which epoch is best; never the test data
evaluate: my_task:correct    # (model) -> one score a sample of the test data: accuracy, interval, paired test

pattern: {channel: {round_to: 8}}  # really smaller. Zeros: element, {n_of_m: [2, 4]}, {block: [4, 1]}
budget: {macs: 0.5}                # at most; or units, params; {params: 100000, relative: false} is a count
criterion: taylor                  # or magnitude, wanda, random, ..., my_task:criterion
rounds: 2                          # prune and recover in so many steps
recover: {epochs: 3, lr: 0.001}    # finetune; or my_task:function, which trains the model it is given
seed: 0
"""
TASK = '''"""Your side of recipe.yaml. Replace what is here by your own network and data."""

import torch
from torch import nn

import prunus

draw = torch.Generator().manual_seed(0)
centers = torch.randn(4, 3, 12, 12, generator=draw)


def _samples(count):
    labels = torch.randint(0, 4, (count,), generator=draw)
    return centers[labels] + 1.5 * torch.randn(count, 3, 12, 12, generator=draw), labels


TRAIN, VALIDATION, TEST = _samples(512), _samples(200), _samples(1000)


def batches():
    """Training batches, (inputs, labels) each: your DataLoader."""
    return [(TRAIN[0][i : i + 32], TRAIN[1][i : i + 32]) for i in range(0, 512, 32)]


def make():
    """(trained model, example inputs). Here it is trained at once; yours would load its weights."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)),
    )
    loss = lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1])  # noqa: E731
    prunus.finetune(model, batches(), loss, epochs=4, bf16=False, channels_last=False)
    return model, TRAIN[0][:16]


def _right(model, split):
    return (model(split[0]).argmax(1) == split[1]).float()


def validated(model):
    """One score a sample of the validation data."""
    return _right(model, VALIDATION)


def correct(model):
    """One score a sample of the test data."""
    return _right(model, TEST)
'''


def init(
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
) -> None:
    """Write recipe.yaml and my_task.py here: they run as they are, for you to replace piece by piece.

    Example: `prunus init && prunus run recipe.yaml --dry-run`
    """
    files = {Path("recipe.yaml"): RECIPE, Path("my_task.py"): TASK}
    there = [str(path) for path in files if path.exists()]
    if there and not force:
        raise RecipeError(f"{' and '.join(there)} are here already and stay as they are; --force replaces them.")
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    say("Wrote recipe.yaml and my_task.py. Next: prunus run recipe.yaml --dry-run")
