"""Train a pruned network again, a plain loop: warm-up and cosine, best checkpoint kept, nothing else left changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from prunus.errors import RecoverError
from prunus.fingerprint import name_of
from prunus.recover.checkpoint import better, checkpoint, restore
from prunus.recover.epochs import Epochs
from prunus.recover.precision import Choice, Precision, autocast, fastest, generators_kept, laid_out
from prunus.types import Batch, Evaluate, Loss, Progress

M = TypeVar("M", bound=nn.Module)
MakeOptimizer: TypeAlias = "Callable[[list[nn.Parameter], float], torch.optim.Optimizer]"
"""Called with (trainable parameters, peak learning rate); `torch.optim.SGD` itself is one."""

WARM_UP = 0.1
FEW_STEPS = 100


def finetune(
    model: M,
    data: Iterable[Batch],
    loss: Loss,
    *,
    epochs: int,
    lr: float = 1e-3,
    optimizer: MakeOptimizer | None = None,
    evaluate: Evaluate | None = None,
    max_grad_norm: float | None = None,
    bf16: Choice = "auto",
    channels_last: Choice = "auto",
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> M:
    """Train `model` in place for `epochs` passes over `data`, and return it.

    The learning rate rises linearly to `lr` over the first tenth of the steps and falls to zero along a cosine.
    With `evaluate` (higher is better; give it a validation split, never the test split) the best of the epochs, the
    state before training included, is what `model` holds at the end; among equals the latest.

    Args:
        model: trained in train mode (`model.train()`); frozen parameters stay as they are.
        data: gives batches each time it is iterated: a DataLoader or a list, not a generator. A method `set_epoch`, if
            there is one, is called with 0, 1, ... before each pass. Data without a length are read once more, to count.
        loss: (model, batch) -> scalar tensor, the mean over the batch.
        optimizer: (parameters, lr) -> optimizer, such as `torch.optim.SGD`; default `adamw`. The rates it sets for its
            parameter groups are the peaks of the schedule.
        max_grad_norm: clip the gradient to this Euclidean norm; None does not clip.
        bf16, channels_last: True, False, or "auto": time a few steps on a copy and take what is faster (`fastest`);
            runs of fewer than `FEW_STEPS` steps are not worth timing and read "auto" as False.
        seed: of torch's generators (dropout, the order of a shuffling DataLoader); the caller's are left as they were.
            Same seed, data, threads and explicit `bf16` and `channels_last`: bit-identical weights.
        run_dir: the state after each epoch is kept there, so that the same call again, on the same untrained model,
            goes on after the last finished epoch; bit for bit, where the data draw from torch's generator, have a
            `generator` of their own, or follow `set_epoch`. What an optimizer's hooks hold, a `Gradual`, is not kept.
        progress: called after each step with what is done, steps done, steps in all.

    Raises:
        RecoverError: the data can be read only once or are empty, the loss is no finite scalar that depends on a
            trainable parameter, the score is not finite, or `epochs` or `lr` is not positive.

    >>> model = nn.Linear(1, 1)
    >>> data = [(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [5.0]]))]
    >>> mse = lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1])
    >>> finetune(model, data, mse, epochs=300, lr=0.2, optimizer=torch.optim.SGD) is model
    True
    >>> round(model(torch.tensor([[3.0]])).item())
    7

    Source: schedule after Goyal et al. 2017, arXiv:1706.02677, section 2.2 (warm-up) and Loshchilov & Hutter 2017,
    arXiv:1608.03983, equation 5 (cosine, without restarts). That a pruned network should be trained on a fresh schedule
    rather than at its last small rate: Renda et al. 2020, arXiv:2003.02389.
    """
    trainable = _checked(model, data, epochs, lr)
    with _modes_kept(model), generators_kept():
        steps = epochs * _length(data)
        kept = Epochs.at(
            run_dir,
            model,
            {
                "epochs": epochs,
                "lr": lr,
                "norm": max_grad_norm,
                "seed": seed,
                "steps": steps,
                "bf16": bf16,
                "channels_last": channels_last,
                "trained": [p.requires_grad for p in model.parameters()],
                "loss": name_of(loss),
                "optimizer": name_of(optimizer),
                "evaluate": name_of(evaluate),
            },
        )
        precision = kept.precision or _precision(model, data, loss, steps, bf16, channels_last)
        _seed(seed)
        take = _Step(model, loss, (optimizer or adamw)(trainable, lr), precision, max_grad_norm)
        best, first, done = kept.restored(model, take.optimizer, data) or (checkpoint(model, evaluate), 0, 0)
        for epoch in range(first, epochs):
            done = _epoch(take, data, epoch, done, steps, progress)
            best = better(best, model, evaluate)
            kept.keep(model, take.optimizer, data, best, epoch + 1, done, precision)
        restore(model, best)
    return model


def _precision(
    model: nn.Module, data: Iterable[Batch], loss: Loss, steps: int, bf16: Choice, channels_last: Choice
) -> Precision:
    if steps < FEW_STEPS:
        return Precision(bf16 is True, channels_last is True)
    return fastest(model, data, loss, bf16=bf16, channels_last=channels_last)


def adamw(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """AdamW that decays matrices and kernels by 0.01, but neither biases nor norms (parameters of one dimension)."""
    decayed = [p for p in parameters if p.dim() > 1]
    free = [p for p in parameters if p.dim() <= 1]
    return torch.optim.AdamW([{"params": decayed}, {"params": free, "weight_decay": 0.0}], lr=lr)


def warm_cosine(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` of `steps`: linear to 1 over a tenth, then half a cosine to 0.

    >>> [round(warm_cosine(step, 20), 2) for step in (0, 1, 2, 11, 19)]
    [0.5, 1.0, 1.0, 0.5, 0.01]
    """
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


@dataclass(frozen=True, eq=False)
class _Step:
    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    precision: Precision
    max_grad_norm: float | None


def _checked(model: nn.Module, data: Iterable[Batch], epochs: int, lr: float) -> list[nn.Parameter]:
    if epochs < 1 or not 0 < lr < math.inf:
        raise RecoverError(
            f"finetune(epochs={epochs}, lr={lr}): expected at least one epoch and a positive, finite lr."
        )
    if isinstance(data, Iterator):
        raise RecoverError(
            f"The training data are a {type(data).__name__}, which can be read only once, but fine-tuning reads them "
            "every epoch. Pass a DataLoader, a list of batches, or an object whose __iter__ starts anew."
        )
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise RecoverError("The model has no trainable parameter: requires_grad is False for all. Unfreeze some first.")
    return trainable


def _length(data: Iterable[Batch]) -> int:
    """Count the batches of a pass, by `len` if there is one."""
    try:
        batches = len(data)  # pyright: ignore[reportArgumentType]
    except TypeError:
        batches = sum(1 for _ in data)
    return max(1, batches)


def _epoch(take: _Step, data: Iterable[Batch], epoch: int, done: int, steps: int, progress: Progress | None) -> int:
    """Train for one pass over the data and return the number of steps done since the first epoch."""
    _set_epoch(data, epoch)
    take.model.train()
    before = done
    with laid_out(take.model, take.precision):
        for batch in data:
            _step(take, batch, warm_cosine(done, steps), f"step {done - before + 1} of epoch {epoch + 1}")
            done += 1
            if progress is not None:
                progress(f"fine-tuning ({take.precision})", min(done, steps), steps)
    if done == before:
        raise RecoverError(
            f"The training data gave no batch in epoch {epoch + 1}: expected batches every epoch. They are empty, "
            "or can be read only once (a generator behind __iter__). Pass a DataLoader or a list of batches."
        )
    return done


def _set_epoch(data: Iterable[Batch], epoch: int) -> None:
    set_epoch: Callable[[int], Any] | None = getattr(data, "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch)


def _step(take: _Step, batch: Batch, rate: float, where: str) -> None:
    optimizer = take.optimizer
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak_lr", group["lr"]) * rate
    optimizer.zero_grad()
    with autocast(take.model, take.precision):
        value = take.loss(take.model, batch)
    _check_loss(value, take, where)
    value.backward()
    if take.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(take.model.parameters(), take.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def _check_loss(value: Any, take: _Step, where: str) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise RecoverError(f"loss(model, batch) returned {given}; expected a scalar tensor, the mean over the batch.")
    if not value.requires_grad:
        raise RecoverError(
            "The loss does not depend on any trainable parameter. It was detached, computed under no_grad, or its part "
            "of the model is frozen."
        )
    if not math.isfinite(value.item()):
        lrs = ", ".join(f"{group['lr']:.3g}" for group in take.optimizer.param_groups)
        raise RecoverError(
            f"The loss became {value.item()} in {where}, at learning rate {lrs} in {take.precision}. The rate is too "
            "high, or inputs or targets are not finite. Try a smaller lr, max_grad_norm=1.0 or bf16=False."
        )


@contextmanager
def _modes_kept(model: nn.Module) -> Generator[None]:
    """Put every module back into the mode, train or eval, that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
