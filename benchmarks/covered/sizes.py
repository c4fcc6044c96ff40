"""The sizes that small configurations of transformers share."""

from __future__ import annotations

from typing import Any

Models = dict[str, tuple[str, str, dict[str, Any], str]]
"""Name: (configuration, model, what the configuration is given, how the model is called)."""

WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
TEXT = {**WIDE, "vocab_size": 100, "max_position_embeddings": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**TEXT, **IDS, "num_key_value_heads": 2, "use_cache": False}
OLD = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 100,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2}
PICTURE = {**WIDE, "image_size": 32, "patch_size": 8, "num_labels": 5}
HALVES = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
BOTH = {**HALVES, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "d_model": 64, "vocab_size": 100, "use_cache": False}
STARTS = {**IDS, "decoder_start_token_id": 2}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "num_labels": 5}
SOUND = {
    **WIDE,
    "vocab_size": 32,
    "conv_dim": (32, 32),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TOWER = {**WIDE, "projection_dim": 32}
