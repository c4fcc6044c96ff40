"""`prunus run digits`: train, prune, recover, measure and save, beside the baselines that pruning must beat.

Rows: the dense network; the same pipeline with the random criterion at the same budget; a smaller dense network of
at most the same MACs, trained from scratch for as many epochs as all rounds together; the pruned network before and
after recovery.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus import criteria
from prunus.apply.shrink import shrink
from prunus.criteria import Criterion
from prunus.measure import measure
from prunus.patterns import Channel
from prunus.pipeline import prune
from prunus.recover import finetune
from prunus.result import Result
from prunus.save import save
from prunus.statistics import PairedChange, paired
from prunus.tasks import digits
from prunus.types import Budget, Inputs, Measurement, Progress

SHARE = 0.25
EPOCHS = 40
ROUND_EPOCHS = (3, 3, 3, 3, 28)
ROUND_LR = 1e-3
BATCH = 64
DENSE = "dense"
PRUNED = "pruned, recovered"


@dataclass(frozen=True, eq=False)
class Row:
    """One model of the comparison: what it costs, and which of the test images it reads correctly; (n,) of 0 and 1."""

    figures: Mapping[str, Measurement]
    correct: Tensor

    def against(self, dense: Row) -> PairedChange:
        return paired(dense.correct, self.correct)


@dataclass(frozen=True, eq=False)
class Demo:
    """The rows of one seed, by name, and the result behind the last one."""

    rows: Mapping[str, Row]
    result: Result


def run(seed: int = 0, directory: str | Path | None = None, progress: Progress | None = None) -> Demo:
    """Run the whole demonstration for one seed; the pruned model is saved to `directory`, where given.

    All of it runs on one thread: for a network this small more threads cost more than they bring.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(seed, directory, progress)
    finally:
        torch.set_num_threads(threads)


def _run(seed: int, directory: str | Path | None, progress: Progress | None) -> Demo:
    dense = digits.digits_cnn(seed=seed)
    digits.train(dense, epochs=EPOCHS, seed=seed, progress=_named("train the dense network", progress))
    result = _pruned(dense, criteria.taylor, seed, "prune", progress)
    chance = _pruned(dense, criteria.random, seed, "prune at random", progress)
    small = digits.smaller(SHARE, seed=seed)
    digits.train(
        small,
        epochs=EPOCHS + sum(ROUND_EPOCHS),
        seed=seed,
        progress=_named("train a smaller dense network", progress),
    )
    models = {
        DENSE: dense,
        "random criterion, recovered": chance.model,
        "smaller dense, from scratch": small,
        "pruned, not recovered": shrink(dense, result.plan, verify=False),
        PRUNED: result.model,
    }
    rows = {name: _row(model, dense) for name, model in models.items()}
    if directory is not None:
        save(result, directory)
    return Demo(rows, result)


def _pruned(dense: nn.Module, criterion: Criterion, seed: int, what: str, progress: Progress | None) -> Result:
    """Prune in rounds with fine-tuning after each; the random criterion takes the same share of every group."""

    def recover(net: nn.Module) -> nn.Module:
        nonlocal done
        done += 1
        named = _named(f"{what}: recover, round {done} of {len(ROUND_EPOCHS)}", progress)
        return finetune(
            net,
            digits.batches(seed=seed + done),
            digits.loss,
            epochs=ROUND_EPOCHS[done - 1],
            lr=ROUND_LR,
            evaluate=digits.likelihood,
            bf16=False,
            channels_last=True,
            seed=seed,
            progress=named,
        )

    done = 0
    return prune(
        dense,
        example(),
        budget=Budget("macs", at_most=SHARE),
        pattern=Channel(round_to=16),
        criterion=criterion,
        scope="layer" if criterion is criteria.random else "global",
        rounds=len(ROUND_EPOCHS),
        data=digits.batches(shuffle=False, augment=False),
        loss=digits.loss,
        recover=recover,
        evaluate=digits.correct,
        seed=seed,
        progress=progress,
    )


def example() -> Tensor:
    """The call that is traced and timed: a batch of real images."""
    return digits.load().train.images[:BATCH]


def _row(model: nn.Module, dense: nn.Module) -> Row:
    """Costs of a model, its latency measured interleaved with the dense one's, and its answers."""
    figures = measure(model, Inputs.of(example()), ("params", "macs", "bytes", "latency_ms"), against=dense, threads=1)
    named = {m.metric: m for m in figures if m.subject == "model"}
    beside = next(m for m in figures if m.subject == "against" and m.metric == "latency_ms")
    return Row({**named, "dense_latency_ms": beside}, digits.correct(model))


def _named(what: str, progress: Progress | None) -> Progress | None:
    """The same progress under another name."""
    return None if progress is None else lambda _, done, total: progress(what, done, total)


def make() -> tuple[nn.Module, Tensor]:
    """(model, inputs), for `prunus scan prunus.tasks.demo:make`."""
    return digits.digits_cnn(), example()
