"""A gradual run in a loop of one's own, with checkpoints that are safetensors; it goes on where it was. See kill.py.

python benchmarks/loop.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

import prunus

STEPS, EVERY = 1200, 4
"""Of the run; from checkpoint to checkpoint."""
Batch = tuple[Tensor, Tensor]


def batch(step: int) -> Batch:
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(64, 32, generator=draw)
    return x, (x[:, :8].square().sum(1) > 8).long()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Run:
    """All that a script makes anew when it is started again."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = nn.Linear(32, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2)
        self.model = nn.Sequential(*layers)
        self.optimizer = AdamW(self.model.parameters(), lr=1e-3)
        self.scheduler = CosineAnnealingLR(self.optimizer, STEPS)
        self.gradual = prunus.Gradual(
            prunus.group(self.model, pattern=prunus.Element()),
            prunus.criteria.taylor,
            prunus.Budget("units", at_most=0.05),
            steps=STEPS * 3 // 4,
            every=3,
            data=[batch(-1 - i) for i in range(4)],
            loss=loss,
        )

    def train(self, step: int) -> None:
        torch.manual_seed(step)  # for the dropout
        self.optimizer.zero_grad()
        loss(self.model, batch(step)).backward()
        self.optimizer.step()
        self.scheduler.step()

    def save(self, step: int, file: Path) -> None:
        """Whole or not at all: the file is written beside and then put in its place."""
        moments, gradual = self.optimizer.state_dict(), self.gradual.state_dict()
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"optimizer.{i}.{k}": t for i, kept in moments["state"].items() for k, t in kept.items()}
        tensors |= {f"gradual.{name}": bits for name, bits in gradual["kept"].items()}
        facts = {"step": step, "gradual": gradual["step"], "groups": moments["param_groups"]}
        facts["scheduler"] = self.scheduler.state_dict()
        save_file(tensors, file.with_suffix(".tmp"), {"facts": json.dumps(facts)})
        os.replace(file.with_suffix(".tmp"), file)  # noqa: PTH105 (the atomic one, by its own name)

    def load(self, file: Path) -> int:
        """How many steps were done."""
        with safe_open(file, "pt") as opened:
            facts = json.loads(opened.metadata()["facts"])
            parts: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}, "gradual": {}}
            for key in opened.keys():  # noqa: SIM118 (no dict)
                part, _, name = key.partition(".")
                parts[part][name] = opened.get_tensor(key)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts["optimizer"].items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = tensor
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict({"state": moments, "param_groups": facts["groups"]})
        self.scheduler.load_state_dict(facts["scheduler"])
        self.gradual.load_state_dict({"step": facts["gradual"], "kept": parts["gradual"]})
        return facts["step"]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    run, file = Run(), folder / "checkpoint.safetensors"
    done = run.load(file) if file.exists() else 0
    with run.gradual.attach(run.model, run.optimizer):
        for step in range(done, STEPS):
            run.train(step)
            if (step + 1) % EVERY == 0:
                run.save(step + 1, file)
    print(f"went on from step {done}; {sum(int((p == 0).sum()) for p in run.model.parameters())} zeros")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
