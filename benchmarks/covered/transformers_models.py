"""Small models of transformers, built from their configurations: each architecture's own code, random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from covered.entry import Call, Entry
from covered.transformers_readers import MODELS as READERS
from covered.transformers_senses import MODELS as SENSES
from covered.transformers_writers import MODELS as WRITERS

FAMILY = "transformers"


def ids(batch: int) -> Call:
    return {"input_ids": torch.randint(3, 100, (batch, 12))}


def masked(batch: int) -> Call:
    """The last example of a batch ends four tokens early."""
    mask = torch.ones(batch, 12, dtype=torch.long)
    mask[-1, 8:] = 0
    return {**ids(batch), "attention_mask": mask}


CALLS: dict[str, Callable[[int], Call]] = {
    "ids": ids,
    "masked": masked,
    "pair": lambda batch: {**ids(batch), "decoder_input_ids": torch.randint(3, 100, (batch, 9))},
    "picture": lambda batch: {"pixel_values": torch.randn(batch, 3, 32, 32)},
    "picture64": lambda batch: {"pixel_values": torch.randn(batch, 3, 64, 64)},
    "film": lambda batch: {"pixel_values": torch.randn(batch, 4, 3, 32, 32)},
    "caption": lambda batch: {**ids(batch), "pixel_values": torch.randn(batch, 3, 32, 32)},
    "sound": lambda batch: {"input_values": torch.randn(batch, 400)},
    "spectrum": lambda batch: {
        "input_features": torch.randn(batch, 16, 40),
        "decoder_input_ids": torch.randint(3, 100, (batch, 9)),
    },
}


def make(config: str, model: str, settings: dict[str, Any]) -> nn.Module:
    import transformers
    import vision  # noqa: F401, transformers imports torchvision

    return getattr(transformers, model)(getattr(transformers, config)(**settings))


def entries() -> Iterator[Entry]:
    for name, (config, model, settings, call) in (READERS | WRITERS | SENSES).items():
        yield Entry(name, FAMILY, partial(make, config, model, settings), CALLS[call])
