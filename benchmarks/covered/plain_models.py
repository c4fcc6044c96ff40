"""Small models of plain torch and of diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from covered.entry import Call, Entry


class Attention(nn.Module):
    """Self-attention with a residual, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


class Encoder(nn.Module):
    """torch's own transformer encoder between an embedding and a classifier."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=norm_first)
        self.embedding = nn.Embedding(50, 32)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer read at its last step."""

    def __init__(self, kind: type[nn.Module], layers: int = 2) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 24)
        self.recurrent = kind(24, 32, layers, batch_first=True)
        self.hidden = nn.Linear(32, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.recurrent(self.inner(x))[0][:, -1]).relu())


def tokens(batch: int) -> Tensor:
    return torch.randint(0, 50, (batch, 12))


def sequence(batch: int) -> Tensor:
    return torch.randn(batch, 7, 16)


def unet(conditioned: bool) -> nn.Module:
    import vision  # noqa: F401, diffusers imports transformers, and that torchvision
    from diffusers import UNet2DConditionModel, UNet2DModel

    shape = {"sample_size": 16, "layers_per_block": 1, "block_out_channels": (32, 64), "norm_num_groups": 8}
    ends = {"in_channels": 4, "out_channels": 4}
    if not conditioned:
        down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
        return UNet2DModel(**shape, **ends, down_block_types=down, up_block_types=up, attention_head_dim=8)
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    blocks = {"down_block_types": down, "up_block_types": up}
    return UNet2DConditionModel(**shape, **ends, **blocks, cross_attention_dim=32, attention_head_dim=8)


def noisy(batch: int) -> Call:
    return {"sample": torch.randn(batch, 4, 16, 16), "timestep": torch.randint(0, 1000, (batch,))}


def conditioned(batch: int) -> Call:
    return {**noisy(batch), "encoder_hidden_states": torch.randn(batch, 7, 32)}


def entries() -> Iterator[Entry]:
    yield Entry("multihead_attention", "torch", Attention, sequence)
    yield Entry("transformer_encoder", "torch", partial(Encoder, False), tokens)
    yield Entry("transformer_encoder_norm_first", "torch", partial(Encoder, True), tokens)
    for kind in (nn.LSTM, nn.GRU):
        yield Entry(kind.__name__.lower(), "torch", partial(Recurrent, kind), sequence)
    yield Entry("unet2d", "diffusers", partial(unet, False), noisy)
    yield Entry("unet2d_condition", "diffusers", partial(unet, True), conditioned)
