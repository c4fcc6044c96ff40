"""Weights in pieces (FSDP2, tensor parallelism): the piece that lies here, and the whole model for who must see it all.

A parameter in pieces is a `DTensor`: it has the shape of the whole, and holds one piece of it in each process.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

from torch import Tensor, nn

from prunus.errors import PlanError
from prunus.graph.private import own_tensors

_MARKS = ("__composable_", "_is_fsdp_managed_module", "_fsdp_use_orig_params")
"""How the attributes begin that `fully_shard` adds to modules."""


def in_pieces(model: nn.Module) -> bool:
    """Is any parameter?"""
    return any(_is_piece(parameter) for parameter in model.parameters())


def check_whole(model: nn.Module, who: str) -> None:
    """Raise `PlanError` when weights that `who` needs whole are in pieces."""
    settle(model)
    if in_pieces(model):
        raise PlanError(
            f"The weights of {type(model).__name__} are in pieces (FSDP2, tensor parallelism), and {who} needs whole "
            "ones. What works on pieces: Gradual, the zeros of a plan (prunus.mask), and l1 over groups within tensors "
            "that no plan has pruned. Or train with whole weights, as under DDP."
        )


def here(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process, in the same memory: its piece, or all of it; detached."""
    piece: Any = tensor.detach()
    return piece.to_local() if _is_piece(piece) else piece


def piece_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """Of a tensor that every process has whole, the piece that belongs to `tensor`; no process asks another."""
    if not _is_piece(tensor):
        return whole
    from torch.distributed.tensor import distribute_tensor

    piece: Any = tensor
    return distribute_tensor(whole, piece.device_mesh, piece.placements, src_data_rank=None).to_local()


def settle(model: nn.Module) -> None:
    """Back to pieces, where a forward without a backward has left whole weights in the modules."""
    for module in model.modules():
        if _fsdp() in type(module).__mro__:
            reshard: Any = module
            reshard.reshard()


def whole_copy(model: nn.Module, *, build: bool) -> nn.Module | None:
    """A private copy with whole weights and without FSDP; None, and no memory, for processes that do not `build` it.

    All processes must call it together. The copy's classes, buffers, modes and attributes are those of the model.
    """
    memo: dict[int, Any] = own_tensors(model) if build else {}
    for parameter in model.parameters():
        whole = _whole(parameter)  # every process gives its piece
        if build:
            memo[id(parameter)] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
    if not build:
        return None
    shells = [(module, _shell(module)) for module in model.modules()]
    memo |= {id(module): shell for module, shell in shells}
    for module, shell in shells:
        vars(shell).update(copy.deepcopy(_without_fsdp(module), memo))
    return shells[0][1]


def _whole(parameter: nn.Parameter) -> Tensor:
    """In memory of its own."""
    found: Any = parameter.detach()
    return found.full_tensor() if _is_piece(found) else found.clone()


def _shell(module: nn.Module) -> nn.Module:
    """An empty module of the user's own class, of which `fully_shard` has made a subclass."""
    kinds = type(module).__mro__
    kind: Any = kinds[kinds.index(_fsdp()) + 1] if _fsdp() in kinds else kinds[0]
    return kind.__new__(kind)


def _without_fsdp(module: nn.Module) -> dict[str, Any]:
    """What a module holds, less what `fully_shard` has put there."""
    own = {name: value for name, value in vars(module).items() if not name.startswith(_MARKS)}
    hooks = {name: value for name, value in own.items() if name.endswith("_hooks")}
    return own | {
        name: type(found)((number, hook) for number, hook in found.items() if not _is_hook_of_fsdp(hook))
        for name, found in hooks.items()
    }


def _is_hook_of_fsdp(hook: Any) -> bool:
    written_in = getattr(getattr(hook, "hook", hook), "__module__", None) or ""
    return written_in.startswith("torch.distributed.fsdp")


def _is_piece(tensor: Tensor) -> bool:
    """Without an import that takes half a second: before it there is no such tensor."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _fsdp() -> Any:
    """The class that `fully_shard` mixes in; None as long as nothing has imported it."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
