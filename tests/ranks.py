"""What tests/test_ranks.py runs in two processes: one gradual run a case, on weights that no two share out evenly.

python tests/ranks.py RANK FOLDER
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

import prunus
from prunus import Block, Budget, Channel, Element, Gradual, NofM, criteria
from prunus.errors import PrunusError
from prunus.graph.private import unwrap
from prunus.patterns import Pattern

STEPS = 8
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """`way`: ddp or fsdp. `shared`: do both ranks see the same batches? `killed`: all is made anew after some steps."""

    way: str
    pattern: Pattern
    criterion: str = "magnitude"
    shared: bool = True
    killed: int | None = None
    shard_first: bool = False
    fused: bool = False


STRAIGHT = [
    *(Case(way, Element(), "taylor", shared) for way in ("ddp", "fsdp") for shared in (True, False)),
    *(Case("fsdp", pattern) for pattern in (NofM(1, 2), Block(1, 2), Channel())),
    Case("ddp", Element(), "random", shared=False),
    Case("fsdp", Channel(), "taylor", shared=False),
    Case("fsdp", Element(), shared=False, shard_first=True, fused=True),
]
KILLED = [replace(case, killed=number) for number, case in zip((5, 3, 6), STRAIGHT[-3:], strict=True)]
CASES = [*STRAIGHT, *KILLED]


ODD = (NofM(1, 2), Block(1, 2))
"""The last layer has 7 inputs."""


BUDGETS = {NofM(1, 2): None, Channel(): Budget("macs", at_most=0.4)}


def net() -> nn.Sequential:
    """3 filters, 7 hidden units and 5 outputs: none divides by two."""
    torch.manual_seed(0)
    ends = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3), nn.Linear(12, 7), nn.Linear(7, 5)
    return nn.Sequential(ends[0], nn.ReLU(), ends[1], nn.Flatten(), ends[2], nn.GELU(), ends[3])


def batch(step: int, rank: int) -> Batch:
    draw = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(6, 2, 6, 6, generator=draw), torch.randint(0, 5, (6,), generator=draw)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def wrapped(model: nn.Sequential, way: str) -> nn.Module:
    if way == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if way == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for part in (model[2], model[4], model):
            fully_shard(part)
        return model
    return model


def made(case: Case, way: str, rank: int) -> tuple[nn.Module, torch.optim.Optimizer, Gradual]:
    """All that a script makes: the wrapped model, its optimizer, and `Gradual`, laid before the wrapping or after."""
    plain = net()
    inner = wrapped(plain, way) if case.shard_first else plain
    source = prunus.trace(plain, batch(0, 0)[0]) if case.pattern == Channel() else inner
    groups = prunus.group(source, pattern=case.pattern, skip=["6.*"] if case.pattern in ODD else ())
    model = inner if case.shard_first else wrapped(plain, way)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=case.fused)
    gradual = Gradual(
        groups,
        getattr(criteria, case.criterion),
        BUDGETS.get(case.pattern, Budget("units", at_most=0.4)),
        steps=STEPS,
        every=2,
        data=[batch(100, rank)],
        loss=loss,
    )
    return model, optimizer, gradual


def whole(tensor: Tensor) -> Tensor:
    gather = getattr(tensor.detach(), "full_tensor", tensor.detach)
    return gather().clone()


def look(model: nn.Module) -> None:
    """A forward without a backward, with which `fully_shard` leaves whole weights behind."""
    with torch.no_grad():
        model(batch(0, 0)[0])


def attached(model: nn.Module, optimizer: torch.optim.Optimizer, gradual: Gradual) -> prunus.Mask:
    """After such a look."""
    look(model)
    return gradual.attach(model, optimizer)


def run(case: Case, way: str, rank: int) -> dict[str, Any]:
    """After each step: the bits of the plan, and the weights, whole."""
    rank = 0 if case.shared else rank
    model, optimizer, gradual = made(case, way, rank)
    bits, weights = [], []
    masks = attached(model, optimizer, gradual)
    for step in range(STEPS + 2):
        if step == case.killed:
            states = [part.state_dict() for part in (model, optimizer, gradual)]
            model, optimizer, gradual = made(case, way, rank)
            for part, state in zip((model, optimizer, gradual), states, strict=True):
                part.load_state_dict(state)
            masks = attached(model, optimizer, gradual)
        optimizer.zero_grad()
        loss(model, batch(step, rank)).backward()
        look(model)
        if step % 2:
            masks.clear_grads()
            for parameter in model.parameters():
                assert not whole(parameter.grad)[whole(parameter) == 0].any()
        optimizer.step()
        bits.append(dict(gradual.state_dict()["kept"]))
        weights.append({name: whole(p) for name, p in unwrap(model).named_parameters()})
    return {"bits": bits, "weights": weights, "step": gradual.step, "costs": gradual.plan.costs}


def refused() -> str:
    """What a rank says when rank 0 cannot score."""
    case = Case("fsdp", Element())
    model, optimizer, gradual = made(case, "fsdp", 0)
    gradual.criterion = lambda stats: {name: w * float("nan") for name, w in stats.weights.items()}
    try:
        gradual.attach(model, optimizer)
    except PrunusError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for number, case in enumerate(CASES):
        torch.save(run(case, case.way, rank), folder / f"{number}-{rank}.pt")
    (folder / f"refused-{rank}").write_text(refused())
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # all is written; threads of gloo that outlive the interpreter would now and then abort it


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
