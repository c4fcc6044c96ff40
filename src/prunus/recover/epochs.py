"""Finished epochs of a fine-tuning, kept on disk so that a killed run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunus.errors import RecoverError
from prunus.fingerprint import fingerprint
from prunus.graph.layout import in_format, is_channels_last
from prunus.recover.checkpoint import Checkpoint, state
from prunus.recover.precision import Precision

Restored = tuple["Checkpoint | None", int, int]
"""The best so far, epochs done, steps done."""


@dataclass(frozen=True, eq=False)
class Epochs:
    """The last finished epoch of one call, in `path` (None keeps nothing): named by the call and its first weights."""

    path: Path | None
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @staticmethod
    def at(run_dir: str | Path | None, model: nn.Module, settings: Mapping[str, Any]) -> Epochs:
        if run_dir is None:
            return Epochs(None, {}, {})
        path = Path(run_dir) / f"finetune-{fingerprint(settings, state(model))[:16]}.safetensors"
        return Epochs(path, *(_read(path) if path.exists() else ({}, {})))

    @property
    def precision(self) -> Precision | None:
        """The choice of the interrupted run: timing anew might choose otherwise."""
        return Precision(**self.facts["precision"]) if self.facts else None

    def restored(self, model: nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> Restored | None:
        """Put model, optimizer and random state back to the last finished epoch; None when there is none."""
        if not self.facts:
            return None
        for i, tensor in enumerate(state(model)):
            tensor.copy_(self.tensors[f"model.{i}"])
        optimizer.load_state_dict(
            {"state": self._optimizer_state(), "param_groups": optimizer.state_dict()["param_groups"]}
        )
        for generator, name in _generators(data):
            if name in self.tensors:
                generator.set_state(self.tensors[name])
        score = self.facts["score"]
        best = [self.tensors[f"best.{i}"].to(t.device) for i, t in enumerate(state(model))] if score is not None else []
        return None if score is None else Checkpoint(score, best), self.facts["epochs"], self.facts["steps"]

    def _optimizer_state(self) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in self.facts["optimizer"].items()}
        for name, tensor in self.tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                laid = in_format(tensor, name in self.facts["channels_last"])  # of equal strides, as before
                found.setdefault(int(index), {})[key] = laid.clone(memory_format=torch.preserve_format)
        return found

    def keep(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Any,
        best: Checkpoint | None,
        epochs: int,
        steps: int,
        precision: Precision,
    ) -> None:
        """Write the epoch that has just finished; it appears whole or not at all."""
        if self.path is None:
            return
        tensors = {f"model.{i}": t for i, t in enumerate(state(model))}
        tensors |= {f"best.{i}": t for i, t in enumerate(best.state if best else ())}
        numbers: dict[str, dict[str, Any]] = {}
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    numbers.setdefault(str(index), {})[key] = value
        tensors |= {name: generator.get_state() for generator, name in _generators(data)}
        score = best.score if best else None
        facts = {
            "epochs": epochs,
            "steps": steps,
            "score": score,
            "precision": vars(precision),
            "optimizer": numbers,
            "channels_last": [name for name, t in tensors.items() if is_channels_last(t)],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, part, {"facts": json.dumps(facts)})
        part.replace(self.path)


def _generators(data: Any) -> list[tuple[torch.Generator, str]]:
    """Whatever training draws from: torch's generators, and one of the data's own."""
    found = [(torch.default_generator, "random")]
    if torch.cuda.is_initialized():
        found += [(generator, f"random.{i}") for i, generator in enumerate(torch.cuda.default_generators)]
    own = getattr(data, "generator", None)  # of a shuffling DataLoader
    return [*found, (own, "order")] if isinstance(own, torch.Generator) else found


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            return json.loads(file.metadata()["facts"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RecoverError(
            f"{path} is no whole epoch ({type(error).__name__}: {error}), most likely changed since; remove it to "
            "train from the start."
        ) from error
