"""`mask`: zeros that hold while a model trains. The one named act in place, and a handle that ends it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from prunus.apply.zeros import kept_of, zero_
from prunus.cost import costs_of
from prunus.errors import PlanError
from prunus.graph.groups import Group
from prunus.graph.private import private_copy, state_of, unwrap
from prunus.graph.shards import in_pieces, settle
from prunus.plan import Plan, pack, unpack
from prunus.score import check_shapes
from prunus.steps import after_every_step, after_step


class Mask:
    """Holds the zeros of `plan` in a model: after each step of an optimizer they are set again.

    The model itself is not wrapped: its class, state-dict keys, pickling, `deepcopy` and `torch.export` are as before,
    and a copy of it has the zeros, but nothing holds them there. `detach()` or leaving a `with` block ends the hold;
    the zeros stay.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self._model = weakref.ref(unwrap(model))
        self._hooks: list[RemovableHandle] = []
        self._ends = weakref.finalize(unwrap(model), _remove, self._hooks)  # a model that is gone needs no hold
        self.update(plan)

    @property
    def plan(self) -> Plan:
        return self._plan

    def update(self, plan: Plan) -> None:
        """Hold the zeros of another plan from now on; weights that come back start where they are, at zero."""
        model = self._model()
        if model is None:
            return
        settle(model)
        self._pieces = in_pieces(model)
        self._kept = kept_of(state_of(model).tensors, plan)
        self._places = {name: _place(model, name) for name in self._kept}
        self._plan = plan
        self.zero()

    def zero(self, other: nn.Module | None = None) -> None:
        """Set the zeros now, for loops that write to weights without a torch optimizer.

        With `other`, a model of the same structure: in that one. An average of weights over time, such as torch's
        `AveragedModel`, still has a share of what a weight was before it went; clear it before the average is used.
        """
        if other is not None:
            _zero_once(unwrap(other), self._plan)
        elif self._model() is not None:
            self._settle()
            self._zero(self._kept)

    def clear_grads(self) -> None:
        """Clear the gradients of what is held at zero: before clipping, so that the norm counts kept weights only."""
        self._settle()
        for name in self._kept:
            grad = self._tensor(name).grad
            if grad is not None:
                zero_(grad, self._on(name, grad))

    def attach(self, *optimizers: Optimizer) -> Mask:
        """Hold after the steps of these optimizers too; of none: of every optimizer that steps a held weight."""
        self._hooks += [after_step(optimizer, self._after_step) for optimizer in optimizers]
        if not optimizers:
            self._hooks.append(after_every_step(self._after_step))
        return self

    def until_detached(self, hook: RemovableHandle) -> None:
        """Remove this hook too when the hold ends."""
        self._hooks.append(hook)

    def detach(self) -> None:
        """End the hold. The zeros stay until something trains them away."""
        _remove(self._hooks)

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept, one bit a unit: group name -> packed bits; for checkpoints."""
        return bits_of(self._plan)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Hold what `state_dict` said. Raises `PlanError` when it speaks of other groups than this plan."""
        self.update(with_bits(self._plan, state))

    def __enter__(self) -> Mask:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _after_step(self, optimizer: Optimizer) -> None:
        self._settle()
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        tensors = {name: self._tensor(name) for name in self._kept}
        if any(id(tensor) in own for tensor in tensors.values()):
            self._zero([n for n, t in tensors.items() if id(t) in own or not isinstance(t, nn.Parameter)])

    def _settle(self) -> None:
        """A forward between backward and step, for a look at the loss, leaves weights that no optimizer steps."""
        model = self._model()
        if self._pieces and model is not None:
            settle(model)

    def _zero(self, names: Iterable[str]) -> None:
        for name in names:
            tensor = self._tensor(name)
            zero_(tensor, self._on(name, tensor))

    def _tensor(self, name: str) -> Tensor:
        """The tensor that stands there now: a state dict may have been assigned, or a buffer replaced."""
        owner, attribute = self._places[name]
        module = owner()
        assert module is not None
        return getattr(module, attribute)

    def _on(self, name: str, tensor: Tensor) -> Tensor:
        """What is kept of it, on its device."""
        if self._kept[name].device != tensor.device:
            self._kept[name] = self._kept[name].to(tensor.device)
        return self._kept[name]


def mask(model: nn.Module, plan: Plan, *optimizers: Optimizer) -> Mask:
    """Set the weights that `plan` removes to zero, in place, and hold them there after each optimizer step.

    With `optimizers`, after their steps; without, after the steps of whichever torch optimizer trains a held weight.
    Plans over elements, N:M cells and blocks zero weights; plans over channels zero all that a unit owns: weights,
    biases, normalisation entries and buffers, so that `shrink` by the same plan later changes nothing (of exact
    groups). Costs one byte a prunable weight, which it shares with the plan where both lie alike in memory
    (channels-last and transposed weights take one more), and one pass over the weights a step.

    Raises `PlanError` when the model does not have the shapes the plan speaks of.

    >>> import torch
    >>> from prunus import Budget, Element, allocate, criteria, group, score
    >>> net = nn.Linear(4, 2)
    >>> groups = group(net, pattern=Element())
    >>> plan = allocate(groups, score(net, groups, criteria.magnitude), Budget("units", at_most=0.5))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with mask(net, plan, optimizer):
    ...     net(torch.ones(1, 4)).sum().backward()
    ...     optimizer.step()
    >>> int((net.weight == 0).sum())
    4
    """
    check_shapes(unwrap(model), plan.groups)
    return Mask(model, plan).attach(*optimizers)


def masked(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the model with the zeros of the plan; nothing holds them."""
    copy = private_copy(unwrap(model), share=False)
    _zero_once(copy, plan)
    return copy


def _zero_once(model: nn.Module, plan: Plan) -> None:
    check_shapes(model, plan.groups)
    tensors = state_of(model).tensors
    for name, kept in kept_of(tensors, plan).items():
        zero_(tensors[name], kept)


def bits_of(plan: Plan) -> dict[str, Tensor]:
    """Group name -> which units stay, packed; groups that no plan has touched are left out."""
    names = {group.leaf: group.name for group in plan.groups.every}
    return {names[leaf]: pack(kept) for leaf, kept in plan.left.items()}


def with_bits(plan: Plan, state: Mapping[str, Tensor]) -> Plan:
    """A plan over the same groups that keeps what packed bits say, with its costs."""
    every = {group.name: group for group in plan.groups.every}
    unknown = sorted(set(state) - set(every))
    if unknown:
        raise PlanError(
            f"The mask state names {unknown[0]!r}, which is no group of this plan; it was saved for another model or "
            f"pattern. Groups here: {', '.join(list(every)[:4])}."
        )
    groups = replace(plan.groups, items=plan.groups.every, alive={} if plan.groups.laid else plan.groups.alive)
    found = replace(plan, groups=groups, keep={name: _unpacked(every[name], bits) for name, bits in state.items()})
    return replace(found, costs=costs_of(groups, found.left) if state else {})


def _unpacked(group: Group, bits: Tensor) -> Tensor:
    try:
        return unpack(bits, group.size)
    except ValueError as error:
        raise PlanError(
            f"The mask state of {group.name!r} holds {error}: it was saved for a model of other shapes than this one."
        ) from None


def _place(model: nn.Module, name: str) -> tuple[weakref.ref[nn.Module], str]:
    """Where a tensor of the state stands: its module and its attribute."""
    path, _, attribute = name.rpartition(".")
    return weakref.ref(model.get_submodule(path)), attribute


def _remove(hooks: list[RemovableHandle]) -> None:
    while hooks:
        hooks.pop().remove()
