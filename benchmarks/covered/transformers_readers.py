"""Small configurations of transformers that read texts, or read one and write another."""

from __future__ import annotations

from covered.sizes import BOTH, IDS, STARTS, TEXT, Models

PAIR = {**BOTH, **STARTS, "max_position_embeddings": 64}
MODELS: Models = {
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
    "bart": ("BartConfig", "BartForConditionalGeneration", PAIR, "pair"),
    "mbart": (
        "MBartConfig",
        "MBartForConditionalGeneration",
        PAIR,
        "pair",
    ),
    "marian": ("MarianConfig", "MarianMTModel", PAIR, "pair"),
    "pegasus": (
        "PegasusConfig",
        "PegasusForConditionalGeneration",
        PAIR,
        "pair",
    ),
}
