"""Small models of transformers with random weights: how each is made and called, and what may be taken out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import vision  # noqa: F401 (transformers imports torchvision, which needs help beside a CPU build of torch)

IDS = torch.arange(2, 14).view(2, 6)
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SOUND = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
TOKENS: dict[str, int] = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
SIZES: dict[str, int] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


@dataclass(frozen=True)
class Hug:
    """`drop`: layers that may go; `left`: what the configuration says without them."""

    model: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Any]
    drop: tuple[str, ...] = ()
    left: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def make(self) -> Any:
        import transformers

        torch.manual_seed(0)
        make: Callable[..., Any] = getattr(transformers, self.model)
        return make(make.config_class(**self.config)).eval()


HUGS: dict[str, Hug] = {
    "bert": Hug(
        "BertForSequenceClassification",
        {**SIZES, "vocab_size": 40, "num_hidden_layers": 2, "num_labels": 2},
        {"input_ids": IDS},
        ("bert.encoder.layer.0",),
        {"num_hidden_layers": 1},
    ),
    "gpt2": Hug(
        "GPT2LMHeadModel",
        {**TOKENS, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 16},
        {"input_ids": IDS},
        ("transformer.h.0", "transformer.h.2"),
        {"n_layer": 2},
    ),
    "llama": Hug(
        "LlamaForCausalLM",
        {**SIZES, **TOKENS, "num_hidden_layers": 3, "num_key_value_heads": 2},
        {"input_ids": IDS},
        ("model.layers.1",),
        {"num_hidden_layers": 2},
    ),
    "mistral": Hug(
        "MistralForCausalLM",
        {**SIZES, **TOKENS, "num_hidden_layers": 2, "num_key_value_heads": 2},
        {"input_ids": IDS},
        ("model.layers.0",),
        {"num_hidden_layers": 1},
    ),
    "t5": Hug(
        "T5ForConditionalGeneration",
        {**TOKENS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
        | {"decoder_start_token_id": 0},
        {"input_ids": IDS, "decoder_input_ids": IDS},
        ("encoder.block.1", "decoder.block.1"),
        {"num_layers": 1, "num_decoder_layers": 1},
    ),
    "vit": Hug(
        "ViTForImageClassification",
        {**SIZES, "num_hidden_layers": 2, "image_size": 32, "patch_size": 16},
        {"pixel_values": IMAGE},
        ("vit.layers.1",),
        {"num_hidden_layers": 1},
    ),
    "whisper": Hug(
        "WhisperForConditionalGeneration",
        {**TOKENS, "num_mel_bins": 8, "encoder_layers": 2, "decoder_layers": 2, "d_model": 32, "encoder_ffn_dim": 64}
        | {"decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        | {"max_source_positions": 8, "max_target_positions": 16, "decoder_start_token_id": 0},
        {"input_features": SOUND, "decoder_input_ids": IDS},
        ("model.encoder.layers.1",),
        {"encoder_layers": 1},
    ),
    "swin": Hug(
        "SwinForImageClassification",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 3], "num_heads": [2, 4], "window_size": 4},
        {"pixel_values": IMAGE},
        ("swin.encoder.layers.1.blocks.0", "swin.encoder.layers.1.blocks.1"),
        {"depths": [2, 1]},
    ),
}
