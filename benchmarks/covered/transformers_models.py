"""Small models of transformers, built from their configurations: each architecture's own code, random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from covered.entry import Call, Entry

FAMILY = "transformers"
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
CAUSAL, CLASSIFIES, PICTURES = "ForCausalLM", "ForSequenceClassification", "ForImageClassification"

# Name: (configuration, model, what the configuration is given, how the model is called).
MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", TEXT, "masked"),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", {**TEXT, **IDS}, "masked"),
    "xlm_roberta": ("XLMRobertaConfig", "XLMRobertaForTokenClassification", {**TEXT, **IDS}, "ids"),
    "camembert": ("CamembertConfig", "CamembertForMaskedLM", {**TEXT, **IDS}, "ids"),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 100, "max_position_embeddings": 64},
        "masked",
    ),
    "albert": ("AlbertConfig", "AlbertForSequenceClassification", {**TEXT, "embedding_size": 32}, "masked"),
    "electra": ("ElectraConfig", "ElectraForSequenceClassification", {**TEXT, "embedding_size": 32}, "masked"),
    "deberta": ("DebertaConfig", "DebertaForSequenceClassification", {**TEXT, "relative_attention": True}, "ids"),
    "deberta_v2": (
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
        "ids",
    ),
    "mpnet": ("MPNetConfig", "MPNetForSequenceClassification", {**TEXT, **IDS}, "masked"),
    "modernbert": ("ModernBertConfig", "ModernBertForSequenceClassification", {**TEXT, **IDS}, "masked"),
    "mobilebert": ("MobileBertConfig", "MobileBertForSequenceClassification", {**TEXT, "embedding_size": 32}, "ids"),
    "squeezebert": ("SqueezeBertConfig", "SqueezeBertForSequenceClassification", {**TEXT, "embedding_size": 64}, "ids"),
    "roformer": ("RoFormerConfig", "RoFormerForSequenceClassification", {**TEXT, "embedding_size": 64}, "ids"),
    "ernie": ("ErnieConfig", "ErnieForSequenceClassification", TEXT, "masked"),
    "xlnet": (
        "XLNetConfig",
        "XLNetForSequenceClassification",
        {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96, "vocab_size": 100},
        "ids",
    ),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**OLD, "n_positions": 64}, "ids"),
    "gpt_neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 96,
            "vocab_size": 100,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 64,
            "use_cache": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "ids",
    ),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", {**OLD, "n_positions": 64, "rotary_dim": 8}, "ids"),
    "codegen": ("CodeGenConfig", "CodeGenForCausalLM", {**OLD, "n_positions": 64, "rotary_dim": 8}, "ids"),
    "gpt_bigcode": ("GPTBigCodeConfig", "GPTBigCodeForCausalLM", {**OLD, "n_positions": 64}, "ids"),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**TEXT, **IDS, "use_cache": False}, "ids"),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {**TEXT, **IDS, "ffn_dim": 96, "word_embed_proj_dim": 64, "use_cache": False},
        "masked",
    ),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "use_cache": False, **IDS},
        "ids",
    ),
    "falcon": ("FalconConfig", "FalconForCausalLM", {**TEXT, **IDS, "use_cache": False}, "ids"),
    "mpt": (
        "MptConfig",
        "MptForCausalLM",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "expansion_ratio": 2,
            "max_seq_len": 64,
            "vocab_size": 100,
            "use_cache": False,
        },
        "ids",
    ),
    **{
        f"llama_{ratio}_queries": (
            "LlamaConfig",
            "LlamaForCausalLM",
            {**GROUPED, "num_attention_heads": 8, "num_key_value_heads": 8 // ratio},
            "ids",
        )
        for ratio in (1, 2, 4, 8)
    },
    "llama_tied": ("LlamaConfig", "LlamaForCausalLM", {**GROUPED, "tie_word_embeddings": True}, "masked"),
    "llama_classifier": ("LlamaConfig", "LlamaForSequenceClassification", GROUPED, "ids"),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**GROUPED, "sliding_window": 8}, "ids"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**EXPERTS, "num_local_experts": 4}, "ids"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", GROUPED, "ids"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}, "ids"),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
        "ids",
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16},
        "ids",
    ),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**GROUPED, "head_dim": 16}, "ids"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**GROUPED, "head_dim": 16, "sliding_window": 8}, "ids"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**GROUPED, "head_dim": 16, "sliding_window": 8}, "ids"),
    "phi": ("PhiConfig", "PhiForCausalLM", GROUPED, "ids"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", GROUPED, "ids"),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", GROUPED, "ids"),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", GROUPED, "ids"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", GROUPED, "ids"),
    "cohere": ("CohereConfig", "CohereForCausalLM", GROUPED, "ids"),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", GROUPED, "ids"),
    "granite": ("GraniteConfig", "GraniteForCausalLM", GROUPED, "ids"),
    "nemotron": ("NemotronConfig", "NemotronForCausalLM", GROUPED, "ids"),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", GROUPED, "ids"),
    "glm": ("GlmConfig", "GlmForCausalLM", {**GROUPED, "head_dim": 16}, "ids"),
    "deepseek_v2": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        {
            **GROUPED,
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "first_k_dense_replace": 2,
        },
        "ids",
    ),
    "xglm": (
        "XGLMConfig",
        "XGLMForCausalLM",
        {
            "d_model": 64,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 96,
            "vocab_size": 100,
            "use_cache": False,
            **IDS,
        },
        "ids",
    ),
    "mamba": (
        "MambaConfig",
        "MambaForCausalLM",
        {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "state_size": 8, "use_cache": False},
        "ids",
    ),
    "mamba2": (
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "vocab_size": 100,
            "state_size": 16,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "use_cache": False,
        },
        "ids",
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 100,
            "use_cache": False,
            **STARTS,
        },
        "pair",
    ),
    "t5_encoder": (
        "T5Config",
        "T5EncoderModel",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 100,
            "feed_forward_proj": "gated-gelu",
        },
        "ids",
    ),
    "bart": ("BartConfig", "BartForConditionalGeneration", {**BOTH, **STARTS, "max_position_embeddings": 64}, "pair"),
    "mbart": (
        "MBartConfig",
        "MBartForConditionalGeneration",
        {**BOTH, **STARTS, "max_position_embeddings": 64},
        "pair",
    ),
    "marian": ("MarianConfig", "MarianMTModel", {**BOTH, **STARTS, "max_position_embeddings": 64}, "pair"),
    "pegasus": (
        "PegasusConfig",
        "PegasusForConditionalGeneration",
        {**BOTH, **STARTS, "max_position_embeddings": 64},
        "pair",
    ),
    "whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {**BOTH, **STARTS, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 20},
        "spectrum",
    ),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2ForCTC", SOUND, "sound"),
    "hubert": ("HubertConfig", "HubertForCTC", SOUND, "sound"),
    "wavlm": ("WavLMConfig", "WavLMForCTC", SOUND, "sound"),
    "vit": ("ViTConfig", "ViTForImageClassification", PICTURE, "picture"),
    "vit_msn": ("ViTMSNConfig", "ViTMSNForImageClassification", PICTURE, "picture"),
    "deit": ("DeiTConfig", "DeiTForImageClassification", PICTURE, "picture"),
    "beit": (
        "BeitConfig",
        "BeitForImageClassification",
        {**PICTURE, "use_relative_position_bias": True, "use_absolute_position_embeddings": False},
        "picture",
    ),
    "data2vec_vision": ("Data2VecVisionConfig", "Data2VecVisionForImageClassification", PICTURE, "picture"),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", PICTURE, "picture"),
    "yolos": (
        "YolosConfig",
        "YolosForObjectDetection",
        {**PICTURE, "image_size": [32, 32], "num_detection_tokens": 5},
        "picture",
    ),
    "swin": (
        "SwinConfig",
        "SwinForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 1],
            "num_heads": [2, 4],
            "window_size": 4,
            "num_labels": 5,
        },
        "picture",
    ),
    "swinv2": (
        "Swinv2Config",
        "Swinv2ForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 1],
            "num_heads": [2, 4],
            "window_size": 4,
            "num_labels": 5,
        },
        "picture",
    ),
    "convnext": ("ConvNextConfig", "ConvNextForImageClassification", STAGES, "picture"),
    "convnextv2": ("ConvNextV2Config", "ConvNextV2ForImageClassification", STAGES, "picture"),
    "resnet": ("ResNetConfig", "ResNetForImageClassification", {**STAGES, "embedding_size": 16}, "picture"),
    "regnet": (
        "RegNetConfig",
        "RegNetForImageClassification",
        {**STAGES, "embedding_size": 16, "groups_width": 8},
        "picture",
    ),
    "mobilenet_v2": ("MobileNetV2Config", "MobileNetV2ForImageClassification", {"num_labels": 5}, "picture"),
    "poolformer": ("PoolFormerConfig", "PoolFormerForImageClassification", STAGES, "picture64"),
    "segformer": (
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [16, 16, 32, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 4],
            "decoder_hidden_size": 32,
            "num_labels": 5,
        },
        "picture64",
    ),
    "mobilevit": (
        "MobileViTConfig",
        "MobileViTForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "neck_hidden_sizes": [16, 32, 32, 48, 64, 64, 96],
            "num_labels": 5,
        },
        "picture64",
    ),
    "videomae": (
        "VideoMAEConfig",
        "VideoMAEForVideoClassification",
        {**PICTURE, "num_frames": 4},
        "film",
    ),
    "clip": (
        "CLIPConfig",
        "CLIPModel",
        {"text_config": {**TOWER, **TEXT, **IDS}, "vision_config": {**TOWER, **PICTURE}, "projection_dim": 32},
        "caption",
    ),
    "siglip": (
        "SiglipConfig",
        "SiglipModel",
        {"text_config": {**TEXT, **IDS, "projection_size": 64}, "vision_config": PICTURE},
        "caption",
    ),
}


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
    for name, (config, model, settings, call) in MODELS.items():
        yield Entry(name, FAMILY, partial(make, config, model, settings), CALLS[call])
