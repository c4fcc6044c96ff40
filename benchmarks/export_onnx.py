"""Networks as ONNX files, dense and with half of every group's units: error against PyTorch, size, latency.

python benchmarks/export_onnx.py --repeats 30

Random weights. `worst error` is relative to the output's scale, over the example, redrawn inputs and other batch sizes.
Latency in ONNX Runtime at batch 1 on one thread, the pruned file timed call by call in turn with the dense one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from prunus.result import aligned
from prunus.tasks import digits

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from vision import models

HEADINGS = ("model", "", "MB", "worst error", "at batch", "ONNX Runtime, ms", "faster than dense")


def bert() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    tokens = torch.randint(0, 1000, (2, 32))
    return BertModel(BertConfig(**sizes)), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


NETS = {
    "digits": lambda: (digits.digits_cnn(), torch.randn(2, 1, 8, 8)),
    "resnet18": lambda: (models.resnet18(), torch.randn(2, 3, 224, 224)),
    "mobilenet_v2": lambda: (models.mobilenet_v2(), torch.randn(2, 3, 224, 224)),
    "vit_b_16": lambda: (models.vit_b_16(), torch.randn(2, 3, 224, 224)),
    "bert-mini": bert,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--models", nargs="+", choices=NETS, default=list(NETS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple[str, ...]] = [HEADINGS]
    for name in given.models:
        torch.manual_seed(0)
        model, inputs = NETS[name]()
        for p in model.parameters():
            if p.ndim > 1 and not p.any():  # ViT's head begins at zero, and with it every output would be
                nn.init.normal_(p, std=0.02)
        rows += compared(name, model.eval(), inputs, given.repeats)
    print("\n".join(aligned(rows)))


def compared(name: str, model: nn.Module, inputs: Any, repeats: int) -> list[tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "dense": prunus.export(model, inputs, Path(folder) / "dense.onnx"),
            "half": prunus.export(halved(model, inputs), inputs, Path(folder) / "half.onnx"),
        }
        single = {k: v[:1] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[:1]
        half, dense = prunus.onnx_latency(files["half"], single, against=files["dense"], threads=1, repeats=repeats)
        times = {"dense": dense.value, "half": half.value}
        return [
            (
                name,
                kind,
                f"{file.bytes / 1e6:.1f}",
                f"{file.worst_error:.1e}",
                ", ".join(map(str, file.batches)),
                f"{times[kind]:.2f}",
                f"{times['dense'] / times[kind]:.2f}x",
            )
            for kind, file in files.items()
        ]


def halved(model: nn.Module, inputs: Any) -> nn.Module:
    groups = prunus.group(prunus.trace(model, inputs)).only(exact=True)
    scores = prunus.score(model, groups, prunus.criteria.magnitude, reduce="mean")
    return prunus.shrink(model, prunus.allocate(groups, scores, prunus.Budget("units", at_most=0.5), scope="layer"))


if __name__ == "__main__":
    main()
