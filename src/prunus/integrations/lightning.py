"""`Prune`: a callback of Lightning (`lightning` or `pytorch_lightning`) that lets pruning ride along.

>>> from prunus.integrations.lightning import Prune
>>> # trainer = L.Trainer(callbacks=[Prune(gradual)])
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from prunus.integrations.riders import Rider, Riders
from prunus.plan import Plan

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback() -> Any:
    """The base class, of the package that the user has imported if there are both."""
    for package in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        if find_spec(package.partition(".")[0]) is not None:
            return import_module(package).Callback
    raise ModuleNotFoundError(
        "prunus.integrations.lightning needs lightning or pytorch-lightning: pip install 'prunus[lightning]'.",
        name="pytorch_lightning",
    )


_Callback: Any = _callback()


class Prune(_Callback):
    """Attach `riders` (a `Gradual`, a `Plan` whose zeros shall hold, ...) when the training starts; detach at its end.

    Their groups are those of the LightningModule, or of its submodule `within`. Of several optimizers the first is
    counted. The state goes into Lightning's checkpoints: `trainer.fit(..., ckpt_path=...)` goes on to the same bits.
    At the end the zeros are set once more, so that weights which another callback has put back or averaged have them
    too; list such callbacks before this one.

    Raises `PlanError` when nothing is given, or a checkpoint is of other riders.
    """

    def __init__(self, *riders: Rider | Plan, within: str = "") -> None:
        super().__init__()
        self.riders, self.within = Riders(riders), within

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.riders.attach(pl_module.get_submodule(self.within), *trainer.optimizers)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 (Lightning's signature)
        self.riders.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        self.riders.detach()

    def state_dict(self) -> dict[str, Any]:
        return self.riders.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.riders.load_state_dict(state_dict)
