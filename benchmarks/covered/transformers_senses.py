"""Small configurations of transformers for images, films and sound, and for these with texts."""

from __future__ import annotations

from covered.sizes import BOTH, IDS, PICTURE, SOUND, STAGES, STARTS, TEXT, TOWER, Models

WINDOWS = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "window_size": 4,
    "num_labels": 5,
    "depths": [2, 1],
    "num_heads": [2, 4],
}
MODELS: Models = {
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
        WINDOWS,
        "picture",
    ),
    "swinv2": (
        "Swinv2Config",
        "Swinv2ForImageClassification",
        WINDOWS,
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
