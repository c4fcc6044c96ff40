"""`attach`: pruning rides along in a loop with Accelerate, and goes into its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer

from prunus.integrations.riders import Rider, Riders
from prunus.plan import Plan


def attach(accelerator: Any, model: nn.Module, *optimizers: Optimizer, riders: Sequence[Rider | Plan]) -> Riders:
    """Attach `riders` to what `accelerator.prepare` gave, until `detach()` or the end of a `with` block.

    Only real steps count: those that gradient accumulation or a gradient scaler leaves out do not. The riders are
    registered for checkpointing: `accelerator.save_state` writes them, `load_state` reads them, and the run goes on to
    the same bits. (Accelerate keeps what is registered in files of its own, which are pickled.)

    Raises `PlanError` when nothing is given, or a checkpoint is of other riders.

    >>> import torch, prunus
    >>> from accelerate import Accelerator
    >>> net = nn.Linear(8, 8)
    >>> groups = prunus.group(net, pattern=prunus.Element())
    >>> budget = prunus.Budget("units", at_most=0.25)
    >>> gradual = prunus.Gradual(groups, prunus.criteria.magnitude, budget, steps=4)
    >>> accelerator = Accelerator(cpu=True)
    >>> net, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))
    >>> with attach(accelerator, net, optimizer, riders=[gradual]):
    ...     for _ in range(4):
    ...         accelerator.backward(net(torch.ones(1, 8)).sum())
    ...         optimizer.step()
    >>> int((net.weight == 0).sum())
    48
    """
    together = Riders(riders).attach(accelerator.unwrap_model(model), *optimizers)
    accelerator.register_for_checkpointing(together)
    return together
