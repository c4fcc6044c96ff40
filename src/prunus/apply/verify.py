"""`verify`: is the smaller model the original without the removed units? Checked on the model at hand.

The reference is the full-width graph in which removed units count as zero wherever they are added up. It is compared
in float64 with the user's weights and with all weights redrawn; where zeroing parameters is the same as removing,
the user's untouched module with zeroed parameters is a second, independent reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from prunus.apply.check import Check
from prunus.apply.dependent import unmoved_by_values
from prunus.apply.precision import precision_for
from prunus.apply.witness import unwitnessed
from prunus.graph.private import unwrap
from prunus.plan import Plan
from prunus.score import check_shapes
from prunus.types import Precise


@dataclass(frozen=True)
class Proof:
    """The worst relative error of each check, and the bound that was `accepted`.

    Checks: `user` and `redrawn` weights against the reference in float64, `train` mode likewise, `zeroed` (the user's
    module with zeroed parameters, at another batch size; only for exact groups), `module` (the returned module against
    its graph at its own dtype). `control` is the error of a model cut one unit off, which a check must see.
    `unwitnessed` names groups whose removal moves nothing, even with redrawn weights. `precision` is what the graph
    was compared in.
    """

    errors: Mapping[str, float]
    accepted: Mapping[str, float]
    control: float
    unwitnessed: tuple[str, ...] = ()
    precision: str = "float64"

    def __str__(self) -> str:
        lines = [f"{name:<8} {error:.1e} (accepted {self.accepted[name]:.0e})" for name, error in self.errors.items()]
        lines.append(f"control  {self.control:.1e} (a model cut one unit off)")
        return "\n".join([*lines, *(f"not witnessed: {name}" for name in self.unwitnessed)])


def verify(model: nn.Module, small: nn.Module, plan: Plan, *, precision: Precise | None = None) -> Proof:
    """Prove that `small` is `model` without the units that `plan` removes; neither is changed.

    In float64; in float32 for `precision="native"`, and for models of more than 100 million parameters unless
    `precision="float64"`. `small` must have the weights the cut gave it: prove before recovery.

    Raises `ProofError` naming the failed check, `PlanError` for another precision.
    """
    model, small = unwrap(model), unwrap(small)
    check_shapes(model, plan.groups)
    check = Check(model, plan, precision_for(model, precision))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        check.state_is_cut(small)
        check.user(small)
        check.redrawn()
        check.zeroed(small)
        check.module(small)
        control = check.control()
        unseen = unwitnessed(check)
        if plan.graph.depends:
            unseen = unmoved_by_values(model, plan, unseen)
        return Proof(check.errors, check.accepted, control, unseen, check.precision.name)
