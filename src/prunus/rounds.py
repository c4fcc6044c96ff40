"""Finished rounds of a run, kept on disk so that a killed run goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunus.apply.apply import apply
from prunus.apply.surgery import replace_state
from prunus.errors import ArtifactError
from prunus.fingerprint import fingerprint
from prunus.graph.groups import Groups
from prunus.graph.layout import in_format, is_channels_last
from prunus.graph.private import private_copy, state_of
from prunus.plan import Plan, load_plan


@dataclass(frozen=True, eq=False)
class Rounds:
    """The rounds kept in `folder` (None keeps nothing), bound to one model, its groups and the settings of the run."""

    folder: Path | None
    groups: Groups
    digest: str

    @staticmethod
    def at(folder: str | Path | None, model: nn.Module, groups: Groups, settings: Mapping[str, Any]) -> Rounds:
        return Rounds(None if folder is None else Path(folder), groups, _digest(model, groups, settings))

    def last(self, model: nn.Module) -> tuple[nn.Module, Plan | None, list[Mapping[str, Any]]]:
        """The model, plan and history after the last finished round; the given model when there is none."""
        kept = self.finished()
        if not kept:
            return model, None, []
        plan, state, history = self.read(kept[-1])
        small = apply(model, plan, verify=False)
        with _damage_named(kept[-1]):
            laid = {n: _laid_like(state[n], t) for n, t in state_of(small).tensors.items()}
        replace_state(small, laid, self.groups.graph.aliases)
        return small, plan, history

    def whole(self, model: nn.Module, kept: Path) -> tuple[nn.Module, Plan, list[Mapping[str, Any]]]:
        """A copy of the given model with the tensors of a finished round, where zeros are held and nothing is cut."""
        plan, state, history = self.read(kept)
        copy = private_copy(model, share=False)
        with _damage_named(kept), torch.no_grad():
            for name, tensor in state_of(copy).tensors.items():
                tensor.copy_(state[name])
        return copy, plan, history

    def finished(self) -> list[Path]:
        """The folders of the finished rounds, in order."""
        return sorted(self.folder.glob("round-[0-9][0-9][0-9]")) if self.folder else []

    def read(self, kept: Path) -> tuple[Plan, Mapping[str, Tensor], list[Mapping[str, Any]]]:
        """Plan, tensors and history of a finished round."""
        with _damage_named(kept):
            facts: dict[str, Any] = json.loads((kept / "history.json").read_text())
            run, history = facts["run"], list(facts["history"])
        if run != self.digest:
            raise ArtifactError(
                f"{self.folder} holds rounds of another run: its model, groups or settings differ from these. "
                "Choose another run_dir, or remove that one to start afresh."
            )
        with _damage_named(kept):
            return load_plan(kept, self.groups), load_file(kept / "state.safetensors"), history

    def keep(self, small: nn.Module, plan: Plan, history: list[Mapping[str, Any]]) -> None:
        """Write a finished round; it appears whole or not at all."""
        if self.folder is None:
            return
        made = self.folder / f"round-{len(history):03d}"
        started = made.with_suffix(".part")
        shutil.rmtree(started, ignore_errors=True)
        started.mkdir(parents=True)
        plan.save(started)
        tensors = {name: t.detach().contiguous() for name, t in state_of(small).tensors.items()}
        save_file(tensors, started / "state.safetensors")
        (started / "history.json").write_text(json.dumps({"run": self.digest, "history": history}) + "\n")
        started.rename(made)


def rounds_in(folder: Path | None) -> int:
    """How many rounds of a run are finished and kept there."""
    return 0 if folder is None else len(list(folder.glob("round-[0-9][0-9][0-9]")))


@contextmanager
def _damage_named(kept: Path) -> Generator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, ArtifactError) as error:
        raise ArtifactError(
            f"{kept} is no whole round ({type(error).__name__}: {error}), most likely cut short or changed since; "
            "remove it to go on from the round before."
        ) from error


def _laid_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A loaded tensor in the memory format and with the gradient flag of the one it replaces."""
    return in_format(tensor.to(like.device), is_channels_last(like)).requires_grad_(like.requires_grad)


def _digest(model: nn.Module, groups: Groups, settings: Mapping[str, Any]) -> str:
    tensors = state_of(model).tensors
    names = {"state": list(tensors), "groups": [g.name for g in groups], "structure": groups.structure}
    return fingerprint({**settings, **names}, tensors.values())
