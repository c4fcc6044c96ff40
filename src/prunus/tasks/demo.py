"""`prunus run digits`: train, prune, recover, measure and save, beside the baselines that pruning must beat.

Rows: the dense network; the same pipeline with the random criterion at the same budget; a smaller dense network of
at most the same MACs, trained from scratch for as many epochs as all rounds together; the pruned network before and
after recovery.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from prunus import criteria
from prunus.apply.shrink import shrink
from prunus.criteria import Criterion
from prunus.patterns import Channel
from prunus.pipeline import prune
from prunus.recover import finetune
from prunus.result import Result
from prunus.rounds import rounds_in
from prunus.running import end, unfinished
from prunus.save import save
from prunus.tasks import digits
from prunus.tasks.rows import DENSE, PRUNED, Demo, example, one_thread, rows_of
from prunus.types import Budget, Progress, renamed

SHARE = 0.25
EPOCHS = 40
ROUND_EPOCHS = (3, 3, 3, 3, 28)
ROUND_LR = 1e-3
METRICS = ("params", "macs", "bytes", "latency_ms")


@one_thread()
def run(seed: int = 0, directory: str | Path | None = None, progress: Progress | None = None) -> Demo:
    """Run the whole demonstration for one seed; the pruned model is saved to `directory`, where given."""
    kept = None if directory is None else unfinished(directory)
    dense = digits.digits_cnn(seed=seed)
    named = renamed("train the dense network", progress)
    digits.train(dense, epochs=EPOCHS, seed=seed, run_dir=kept, progress=named)
    result = _pruned(dense, criteria.taylor, seed, "prune", kept, progress)
    chance = _pruned(dense, criteria.random, seed, "prune at random", kept, progress)
    small = digits.smaller(SHARE, seed=seed)
    digits.train(
        small,
        epochs=EPOCHS + sum(ROUND_EPOCHS),
        seed=seed,
        run_dir=kept,
        progress=renamed("train a smaller dense network", progress),
    )
    models = {
        DENSE: dense,
        "random criterion, recovered": chance.model,
        "smaller dense, from scratch": small,
        "pruned, not recovered": shrink(dense, result.plan, verify=False),
        PRUNED: result.model,
    }
    done = Demo(rows_of(models, METRICS, progress), result)
    if directory is not None:
        save(result, directory, rows=done.rows, command=f"prunus run digits --seed {seed}")
        end(directory)
    return done


def _pruned(
    dense: nn.Module, criterion: Criterion, seed: int, what: str, kept: Path | None, progress: Progress | None
) -> Result:
    """Prune in rounds with fine-tuning after each; the random criterion takes the same share of every group."""

    def recover(net: nn.Module) -> nn.Module:
        nonlocal done
        done += 1
        named = renamed(f"{what}: recover, round {done} of {len(ROUND_EPOCHS)}", progress)
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
            run_dir=kept,
            progress=named,
        )

    folder = None if kept is None else kept / what
    done = rounds_in(folder)  # a killed run goes on after these
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
        run_dir=folder,
        seed=seed,
        progress=progress,
    )


def make() -> tuple[nn.Module, Tensor]:
    """(model, inputs), for `prunus scan prunus.tasks.demo:make`."""
    return digits.digits_cnn(), example()
