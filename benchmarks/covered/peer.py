"""What Torch-Pruning does to a model, called as its README, its examples and its own list of models call it.

Half of every group by group magnitude, one shot. Layers that make the results are ignored, detectors as in its
`examples/torchvision_models`. With heads declared, attention is told and mended afterwards as in its
`examples/transformers` and `examples/LLMs`: head dimensions go, or whole heads where the positions are rotary.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from covered.entry import Entry, run
from covered.judge import CRASHED, first_line, leaves

VERSION = "1.6.1"
Attention = tuple[nn.Module, list[nn.Module], bool]
"""(module, its projections, whether the model's positions are rotary)."""
NO_HEADS = "no heads to declare"
SEPARATE = ("query key value", "q_proj k_proj v_proj", "q_lin k_lin v_lin", "to_q to_k to_v", "q k v")
PACKED = ("qkv_proj", "query_key_value", "Wqkv", "qkv", "c_attn")
COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads")
SIZES = ("attention_head_size", "head_dim", "head_size", "key_value_proj_dim")
WIDTHS = ("all_head_size", "embed_dim", "inner_dim", "hidden_size", "hidden_dim")
HEADS_OF_DETECTORS = {
    "ssd": "head",
    "fasterrcnn": "rpn.head.cls_logits rpn.head.bbox_pred backbone.fpn roi_heads",
    "fcos": "head.classification_head.cls_logits head.regression_head.bbox_reg head.regression_head.bbox_ctrness",
    "keypointrcnn": "rpn.head.cls_logits rpn.head.bbox_pred backbone.fpn.layer_blocks roi_heads.box_head "
    "roi_heads.box_predictor roi_heads.keypoint_predictor",
    "maskrcnn": "rpn.head.cls_logits rpn.head.bbox_pred roi_heads.box_predictor roi_heads.mask_predictor",
    "retinanet": "head.classification_head.cls_logits head.regression_head.bbox_reg",
    "raft": "corr_block update_block mask_predictor",
}


def prune(model: nn.Module, row: dict[str, Any], entry: Entry, *, heads: bool) -> nn.Module | None:
    """The smaller model, or None with the verdict in the row."""
    tp = imported()
    small = copy.deepcopy(model).eval().requires_grad_(True)
    attentions = list(attention_of(small)) if heads else []
    if heads and not attentions:
        row["verdict"] = NO_HEADS
        return None
    start = time.perf_counter()
    try:
        _half(tp, small, entry, attentions)
    except Exception as error:  # noqa: BLE001, it has no errors of its own
        row |= {"verdict": CRASHED, "why": first_line(error)}
        return None
    row["plan_s"] = round(time.perf_counter() - start, 2)
    return small


def imported() -> Any:
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Torch-Pruning is not installed; install it with `pip install torch-pruning=={VERSION}`.", name=error.name
        ) from error
    return torch_pruning


def _half(tp: Any, small: nn.Module, entry: Entry, attentions: list[Attention]) -> None:
    torch.manual_seed(0)
    example = entry.call(1)
    counts = {
        layer: n
        for owner, layers, _ in attentions
        for layer, n in zip(layers, _heads(small, owner, layers), strict=True)
    }
    rotary = any(whole for _, _, whole in attentions)
    patches = getattr(getattr(small, "encoder", None), "layers", None) if entry.name.startswith("vit_") else None
    pruner = tp.pruner.BasePruner(
        small,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored(small, entry),
        num_heads=counts,
        prune_num_heads=rotary,
        prune_head_dims=not rotary,
        head_pruning_ratio=0.5 if rotary else 0.0,
        output_transform=lambda out: [t for _, t in leaves(out, "") if t.requires_grad],
        round_to=patches[0].num_heads if patches is not None else None,
    )
    pruner.step()
    if patches is not None:
        small.hidden_dim = small.conv_proj.out_channels
    mend(small, attentions, pruner.num_heads)


def ignored(model: nn.Module, entry: Entry) -> list[nn.Module]:
    """The layers whose results the model returns, and those that Torch-Pruning's own list leaves out."""
    made: dict[int, nn.Module] = {}

    def note(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            made[out.untyped_storage().data_ptr()] = module

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        out = run(model, entry.call(1))
    for hook in hooks:
        hook.remove()
    last = [made[p] for _, t in leaves(out, "") if (p := t.untyped_storage().data_ptr()) in made]
    own = next((paths for start, paths in HEADS_OF_DETECTORS.items() if entry.name.startswith(start)), "")
    classes = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    return [*last, *classes, *(model.get_submodule(path) for path in own.split() if path != "corr_block")]


def attention_of(model: nn.Module) -> Iterator[Attention]:
    """Each attention: torch's own is its own projection, any other has linear layers under well-known names."""
    rotary = any("rotary" in name.lower() for name, _ in model.named_modules())
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            yield module, [module], False
        for names in (*(names.split() for names in SEPARATE), *([name] for name in PACKED)):
            layers = [getattr(module, name, None) for name in names]
            if all(isinstance(layer, nn.Linear) for layer in layers):
                yield module, [layer for layer in layers if layer is not None], rotary
                break


def _heads(model: nn.Module, owner: nn.Module, layers: list[nn.Module]) -> list[int]:
    """The number of heads in each projection: that of the module, else of its configuration."""
    config = getattr(owner, "config", getattr(model, "config", None))
    if layers == [owner]:
        return [owner.num_heads]
    count = next((n for at in (owner, config) for name in COUNTS if isinstance(n := getattr(at, name, None), int)), 1)
    size = layers[0].out_features // count
    return [max(layer.out_features // size, 1) if len(layers) > 1 else count for layer in layers]


def mend(model: nn.Module, attentions: list[Attention], heads: dict[nn.Module, int]) -> None:
    """Set the sizes that attention modules keep as numbers to what is left, as the examples do."""
    for module, layers, _ in attentions:
        if layers == [module]:
            continue  # mended by Torch-Pruning itself
        count, width = heads[layers[0]], layers[0].out_features // (3 if len(layers) == 1 else 1)
        values = dict.fromkeys(COUNTS, count) | dict.fromkeys(SIZES, width // count) | dict.fromkeys(WIDTHS, width)
        values["num_key_value_heads"] = heads[layers[min(1, len(layers) - 1)]]
        values["num_key_value_groups"] = count // values["num_key_value_heads"]
        for name, value in values.items():
            if isinstance(vars(module).get(name), int):
                setattr(module, name, value)
    config, head = getattr(model, "config", None), getattr(model, "lm_head", None)
    if attentions and config is not None and isinstance(head, nn.Linear) and hasattr(config, "hidden_size"):
        config.hidden_size = head.in_features
