"""One run, in a process of its own: its dense network, the way, and how well each network that comes out does."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compared import fashion
from compared.net import correct, made, train
from compared.runs import DENSE_STEPS, Run
from compared.ways import WAYS, Given


def row_of(run: Run, data: Path, cache: Path) -> dict[str, Any]:
    """name, accuracy of each network in the test images, which images it told right, what is left of its weights."""
    torch.set_num_threads(1)
    images, held, test = fashion.load(data)
    dense = trained(run.seed, images, cache)
    start = time.perf_counter()
    judged = WAYS[run.way](Given(run, dense, images))
    row: dict[str, Any] = {**vars(run), "name": run.name, "seconds": round(time.perf_counter() - start, 1)}
    for what, net in judged.items():
        right = correct(net, test)
        chosen = float(correct(net, held).float().mean())
        row[what] = {"accuracy": float(right.float().mean()), "held": chosen, "right": packed(right), **left(net)}
    return row


def trained(seed: int, images: fashion.Images, cache: Path) -> nn.Module:
    """The dense network of a seed, trained once and kept."""
    path = cache / f"dense-{seed}.safetensors"
    net = made(seed)
    if not path.exists():
        train(net, images, DENSE_STEPS, seed=seed)
        part = path.with_suffix(".part")
        save_file({name: t.contiguous() for name, t in net.state_dict().items()}, part)
        part.replace(path)
    net.load_state_dict(load_file(path))
    return net


def left(net: nn.Module) -> dict[str, Any]:
    """The share of weights that are not zero, and the fewest that any layer has."""
    counts = {n: (int((p != 0).sum()), p.numel()) for n, p in net.named_parameters() if p.ndim > 1}
    dead = [name for name, (some, _) in counts.items() if some <= 1]
    return {"kept": sum(a for a, _ in counts.values()) / sum(b for _, b in counts.values()), "emptied": dead}


def packed(right: Tensor) -> str:
    """Booleans as base64 of their bits."""
    bits = right.view(-1, 8).to(torch.uint8) << torch.arange(8, dtype=torch.uint8)
    return base64.b64encode(bytes(bits.sum(1, dtype=torch.uint8).tolist())).decode()


def unpacked(text: str) -> Tensor:
    bits = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
    return (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()
