"""Architectures of the transformers package at tiny random configurations; imported lazily, nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Example = Callable[[], dict[str, Tensor]]


def pixels(size: int = 64, name: str = "pixel_values") -> Example:
    return lambda: {name: torch.randn(2, 3, size, size)}


def tokens(length: int = 8, vocabulary: int = 60) -> Example:
    return lambda: {"input_ids": torch.randint(3, vocabulary, (2, length))}


def translation() -> dict[str, Tensor]:
    return {**tokens()(), "decoder_input_ids": torch.randint(3, 60, (2, 6))}


def speech() -> dict[str, Tensor]:
    return {"input_features": torch.randn(2, 16, 32), "decoder_input_ids": torch.randint(3, 60, (2, 6))}


def waveform() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 400)}


def image_and_text() -> dict[str, Tensor]:
    return {**tokens()(), **pixels(32)()}


def build(model: str, config: str, **settings: Any) -> nn.Module:
    transformers = importlib.import_module("transformers")
    return getattr(transformers, model)(getattr(transformers, config)(**settings))


VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
BERT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
}
LLAMA = {**BERT, "num_key_value_heads": 2, "use_cache": False, "head_dim": 8}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 128, "num_layers": 2, "num_heads": 4, "use_cache": False}
BART = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "use_cache": False,
}
FOUR_STAGES = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]}
SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
SPEECH = {
    "conv_dim": (16, 16),
    "conv_stride": (4, 2),
    "conv_kernel": (8, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 30,
}
WHISPER = {
    **BART,
    "num_mel_bins": 16,
    "max_source_positions": 16,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
CLIP = {
    "text_config": {**BERT, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
    "vision_config": VIT,
    "projection_dim": 16,
}
SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [16, 32],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
}
MOBILEVIT = {
    "image_size": 64,
    "hidden_sizes": [16, 24, 32],
    "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 48],
    "num_attention_heads": 4,
    "mlp_ratio": 2.0,
}
LEVIT = {
    "image_size": 64,
    "hidden_sizes": [32, 48, 64],
    "num_attention_heads": [2, 3, 4],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
    "attention_ratio": [2, 2, 2],
    "mlp_ratio": [2, 2, 2],
    "down_ops": [["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 6, 4, 2, 2], [""]],
}
CVT = {"embed_dim": [16, 32, 48], "num_heads": [2, 2, 3], "depth": [1, 2, 3]}
HGNET = {
    "embedding_size": 16,
    "hidden_sizes": [24, 32, 40, 48],
    "depths": [1, 1, 1, 1],
    "stem_channels": [3, 8, 16],
    "stage_in_channels": [16, 24, 32, 40],
    "stage_mid_channels": [8, 12, 16, 20],
    "stage_out_channels": [24, 32, 40, 48],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
}
POOLFORMER = {**FOUR_STAGES, "mlp_ratio": 4.0}

BLOOM = {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False}
XLNET = {"vocab_size": 60, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 128}
SWIFTFORMER = {"image_size": 64, "embed_dims": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
HIERA = {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
GLPN = {
    "num_encoder_blocks": 4,
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 2, 4],
    "decoder_hidden_size": 16,
}

Row = tuple[str, str, str, dict[str, Any], Example, str]

TRANSFORMERS: list[Row] = [
    ("ResNet", "ResNetForImageClassification", "ResNetConfig", {**FOUR_STAGES, "embedding_size": 16}, pixels(), "conv"),
    (
        "ResNet basic",
        "ResNetForImageClassification",
        "ResNetConfig",
        {**FOUR_STAGES, "embedding_size": 16, "layer_type": "basic"},
        pixels(),
        "conv",
    ),
    (
        "RegNet",
        "RegNetForImageClassification",
        "RegNetConfig",
        {**FOUR_STAGES, "embedding_size": 16, "groups_width": 8},
        pixels(),
        "conv",
    ),
    (
        "MobileNetV1",
        "MobileNetV1ForImageClassification",
        "MobileNetV1Config",
        {"depth_multiplier": 0.25, "image_size": 64},
        pixels(),
        "conv",
    ),
    (
        "MobileNetV2",
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"depth_multiplier": 0.35, "image_size": 64},
        pixels(),
        "conv",
    ),
    (
        "EfficientNet",
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
        pixels(),
        "conv",
    ),
    ("ConvNeXt", "ConvNextForImageClassification", "ConvNextConfig", FOUR_STAGES, pixels(), "norm"),
    ("ConvNeXtV2", "ConvNextV2ForImageClassification", "ConvNextV2Config", FOUR_STAGES, pixels(), "norm"),
    ("HGNetV2", "HGNetV2ForImageClassification", "HGNetV2Config", HGNET, pixels(), "conv"),
    (
        "BiT",
        "BitForImageClassification",
        "BitConfig",
        {**FOUR_STAGES, "embedding_size": 32, "hidden_sizes": [32, 64, 64, 64], "num_groups": 8},
        pixels(),
        "norm",
    ),
    ("ViT", "ViTForImageClassification", "ViTConfig", VIT, pixels(32), "norm"),
    ("DeiT", "DeiTForImageClassification", "DeiTConfig", VIT, pixels(32), "norm"),
    (
        "BEiT",
        "BeitForImageClassification",
        "BeitConfig",
        {**VIT, "use_relative_position_bias": True},
        pixels(32),
        "norm",
    ),
    ("DINOv2", "Dinov2ForImageClassification", "Dinov2Config", VIT, pixels(32), "norm"),
    ("Swin", "SwinForImageClassification", "SwinConfig", SWIN, pixels(32), "norm"),
    ("SwinV2", "Swinv2ForImageClassification", "Swinv2Config", SWIN, pixels(32), "norm"),
    ("PoolFormer", "PoolFormerForImageClassification", "PoolFormerConfig", POOLFORMER, pixels(), "norm"),
    ("SegFormer", "SegformerForSemanticSegmentation", "SegformerConfig", SEGFORMER, pixels(32), "norm"),
    ("MobileViT", "MobileViTForImageClassification", "MobileViTConfig", MOBILEVIT, pixels(), "norm"),
    (
        "MobileViTV2",
        "MobileViTV2ForImageClassification",
        "MobileViTV2Config",
        {"image_size": 64, "width_multiplier": 0.25, "base_attn_unit_dims": [32, 48, 64], "n_attn_blocks": [1, 1, 1]},
        pixels(),
        "norm",
    ),
    ("LeViT", "LevitForImageClassification", "LevitConfig", LEVIT, pixels(), "conv"),
    ("CvT", "CvtForImageClassification", "CvtConfig", CVT, pixels(), "norm"),
    (
        "FocalNet",
        "FocalNetForImageClassification",
        "FocalNetConfig",
        {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3]},
        pixels(32),
        "norm",
    ),
    ("CLIP", "CLIPModel", "CLIPConfig", CLIP, image_and_text, "norm"),
    ("SigLIP vision", "SiglipVisionModel", "SiglipVisionConfig", VIT, pixels(32), "norm"),
    ("BERT", "BertForSequenceClassification", "BertConfig", BERT, tokens(), "norm"),
    ("RoBERTa", "RobertaForSequenceClassification", "RobertaConfig", BERT, tokens(), "norm"),
    (
        "DistilBERT",
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "max_position_embeddings": 32},
        tokens(),
        "norm",
    ),
    (
        "ALBERT",
        "AlbertForSequenceClassification",
        "AlbertConfig",
        {**BERT, "embedding_size": 16},
        tokens(),
        "norm",
    ),
    (
        "ELECTRA",
        "ElectraForSequenceClassification",
        "ElectraConfig",
        {**BERT, "embedding_size": 16},
        tokens(),
        "norm",
    ),
    (
        "GPT-2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 60, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
        tokens(),
        "norm",
    ),
    (
        "OPT",
        "OPTForCausalLM",
        "OPTConfig",
        {**BERT, "ffn_dim": 128, "word_embed_proj_dim": 32, "use_cache": False},
        tokens(),
        "norm",
    ),
    ("GPT-NeoX", "GPTNeoXForCausalLM", "GPTNeoXConfig", {**BERT, "use_cache": False}, tokens(), "norm"),
    ("Llama", "LlamaForCausalLM", "LlamaConfig", LLAMA, tokens(), "norm"),
    ("Qwen2", "Qwen2ForCausalLM", "Qwen2Config", LLAMA, tokens(), "norm"),
    ("Qwen3", "Qwen3ForCausalLM", "Qwen3Config", LLAMA, tokens(), "norm"),
    ("Gemma", "GemmaForCausalLM", "GemmaConfig", LLAMA, tokens(), "norm"),
    ("Phi-3", "Phi3ForCausalLM", "Phi3Config", {**LLAMA, "pad_token_id": 0}, tokens(), "norm"),
    ("T5", "T5ForConditionalGeneration", "T5Config", T5, translation, "norm"),
    (
        "BART",
        "BartForConditionalGeneration",
        "BartConfig",
        {**BART, "max_position_embeddings": 32},
        translation,
        "norm",
    ),
    ("Whisper", "WhisperForConditionalGeneration", "WhisperConfig", WHISPER, speech, "norm"),
    ("Wav2Vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", {**BERT, **SPEECH}, waveform, "norm"),
    ("HuBERT", "HubertForCTC", "HubertConfig", {**BERT, **SPEECH}, waveform, "norm"),
    ("Mistral", "MistralForCausalLM", "MistralConfig", LLAMA, tokens(), "norm"),
    ("Bloom", "BloomForCausalLM", "BloomConfig", BLOOM, tokens(), "norm"),
    ("DeBERTa", "DebertaV2Model", "DebertaV2Config", BERT, tokens(), "norm"),
    ("XLNet", "XLNetModel", "XLNetConfig", XLNET, tokens(), "norm"),
    ("SwiftFormer", "SwiftFormerForImageClassification", "SwiftFormerConfig", SWIFTFORMER, pixels(), "norm"),
    ("Hiera", "HieraForImageClassification", "HieraConfig", HIERA, pixels(), "norm"),
    ("GLPN", "GLPNForDepthEstimation", "GLPNConfig", GLPN, pixels(), "norm"),
]
"""(name, model class, configuration class, settings, inputs, kind) of each."""
