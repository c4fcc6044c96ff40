"""What rides along in training: anything that is attached to a model and its optimizers, and is saved with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from torch.optim.optimizer import Optimizer

from prunus.apply.mask import Mask, bits_of, mask, with_bits
from prunus.errors import PlanError
from prunus.plan import Plan
from prunus.regularize import L0
from prunus.steps import inner


class Hold(Protocol):
    """What `attach` returns."""

    def detach(self) -> None: ...


class Rider(Protocol):
    """`Gradual`, and whatever else has its shape. The state is made of tensors, numbers, strings, lists and dicts."""

    def attach(self, model: nn.Module, *optimizers: Optimizer) -> Hold: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Held:
    """A plan that rides along: what it removes stays zero."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._masks: Mask | None = None

    def attach(self, model: nn.Module, *optimizers: Optimizer) -> Mask:
        self._masks = mask(model, self.plan, *optimizers)
        return self._masks

    def state_dict(self) -> dict[str, Any]:
        return {"kept": bits_of(self.plan)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What the checkpoint held is held again, whatever a new run would choose."""
        self.plan = with_bits(self.plan, state["kept"])
        if self._masks is not None:
            self._masks.update(self.plan)


class Riders:
    """Several riders as one: attached together, in the order given, and saved together."""

    def __init__(self, riders: Sequence[Rider | Plan]) -> None:
        if not riders:
            raise PlanError(
                "Nothing was given to ride along; expected a Gradual, a Plan or the like, as in Prune(gradual). Under "
                "transformers leave restore_callback_states_from_checkpoint=False: it makes callbacks anew from their "
                "saved arguments, and a model's groups are none. Prune finds its state in the checkpoint by itself."
            )
        if any(isinstance(rider, L0) for rider in riders):
            raise PlanError(
                "L0 adds a param group to the optimizer, which the schedulers and checkpoints of a framework do not "
                "expect, so that it cannot ride along there. Use it in a loop of your own: l0.attach(model, optimizer)."
            )
        self.riders: list[Rider] = [Held(rider) if isinstance(rider, Plan) else rider for rider in riders]
        self._holds: list[Hold] = []

    def attach(self, model: nn.Module, *optimizers: Optimizer) -> Riders:
        """Attach each; what was attached before is let go. Wrapped optimizers are looked into."""
        self.detach()
        inside = [inner(optimizer) for optimizer in optimizers]
        for rider in self.riders:
            self._holds.append(rider.attach(model, *inside))
        return self

    def detach(self) -> None:
        """Let go, the last first."""
        while self._holds:
            self._holds.pop().detach()

    def finish(self) -> None:
        """Set the zeros once more, as weights may have been put back or averaged at the end; and let go."""
        for hold in self._holds:
            if isinstance(hold, Mask):
                hold.zero()
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"riders": [rider.state_dict() for rider in self.riders]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `PlanError` when the checkpoint is of other riders."""
        saved = state["riders"]
        if len(saved) != len(self.riders):
            raise PlanError(
                f"The checkpoint holds the state of {len(saved)} riders, but {len(self.riders)} were given. Give the "
                "same ones in the same order."
            )
        for rider, its in zip(self.riders, saved, strict=True):
            rider.load_state_dict(its)

    def __enter__(self) -> Riders:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()
