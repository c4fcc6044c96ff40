"""`Prune`: a callback of transformers' `Trainer` that lets pruning ride along.

>>> from prunus.integrations.transformers import Prune
>>> # trainer = Trainer(model, args, train_dataset=data, callbacks=[Prune(gradual)])
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from prunus.errors import PlanError
from prunus.integrations.riders import Rider, Riders
from prunus.integrations.text import from_text, to_text
from prunus.plan import Plan

if find_spec("transformers") is None:
    raise ModuleNotFoundError(
        "prunus.integrations.transformers needs transformers: pip install 'prunus[transformers]'.", name="transformers"
    )
from transformers.trainer_callback import ExportableState, TrainerCallback


class Prune(TrainerCallback, ExportableState):
    """Attach `riders` (a `Gradual`, a `Plan` whose zeros shall hold, ...) when the training begins; detach at its end.

    Their groups are those of the model, or of its submodule `within`. The state goes into the `trainer_state.json` of
    every checkpoint, as text: `trainer.train(resume_from_checkpoint=...)` goes on to the same bits. At the end the
    zeros are set once more: `load_best_model_at_end` may put back weights from before they went.

    Raises `PlanError` when nothing is given, when there are two of it, or a checkpoint is of other riders.
    """

    def __init__(self, *riders: Rider | Plan, within: str = "") -> None:
        self.riders, self.within = Riders(riders), within

    def state(self) -> dict[str, Any]:
        """What transformers saves; `args` and `attributes` are the names it looks for."""
        return {"args": {}, "attributes": {}, "riders": to_text(self.riders.state_dict())}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 (its signature)
        """`state` was read from the checkpoint, where training goes on from one."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if isinstance(saved, list):
            raise PlanError("The Trainer has several Prune callbacks; expected one. Give it all riders: Prune(a, b).")
        self.riders.load_state_dict(from_text(saved["riders"]))
        self.riders.attach(kwargs["model"].get_submodule(self.within), kwargs["optimizer"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.riders.finish()
