"""Decoders, text encoders and samplers of generators, tiny, with random weights."""

from collections.abc import Mapping
from typing import Any

import diffusers
import transformers

GEMMA: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 8,
    "query_pre_attn_scalar": 8,
}
QWEN: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}


def vae(channels: int, **how: Any) -> Any:
    """An AutoencoderKL of 8 pixels a latent cell."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = {"block_out_channels": (8, 8, 8, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 64}
    return diffusers.AutoencoderKL(latent_channels=channels, **kinds, **widths, **how)


def flux_vae() -> Any:
    """FLUX.1's, which many families decode with: shifted, without convolutions beside the latents."""
    return vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)


def deep_compression_vae() -> Any:
    """DC-AE: 32 pixels a latent cell."""
    sides = {"encoder_block_out_channels": (8,) * 6, "decoder_block_out_channels": (8,) * 6, "attention_head_dim": 4}
    layers = {"encoder_layers_per_block": (1,) * 6, "decoder_layers_per_block": (1,) * 6}
    scales = {"encoder_qkv_multiscales": ((),) * 5 + ((5,),), "decoder_qkv_multiscales": ((),) * 5 + ((5,),)}
    kinds = {
        "encoder_block_types": ("ResBlock",) * 5 + ("EfficientViTBlock",),
        "decoder_block_types": ("ResBlock",) * 5 + ("EfficientViTBlock",),
    }
    return diffusers.AutoencoderDC(latent_channels=8, scaling_factor=0.41407, **sides, **layers, **scales, **kinds)


def flux2_vae() -> Any:
    """FLUX.2's: batch norm of 2 × 2 patches in place of a scale."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = {"block_out_channels": (8, 8, 8, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 64}
    return diffusers.AutoencoderKLFlux2(latent_channels=4, **kinds, **widths)


def qwen_vae() -> Any:
    """Qwen-Image's: made for video, a mean and a deviation for each channel."""
    statistics = {"latents_mean": [0.1 * n for n in range(8)], "latents_std": [1 + 0.2 * n for n in range(8)]}
    sizes = {"base_dim": 8, "z_dim": 8, "num_res_blocks": 1}
    return diffusers.AutoencoderKLQwenImage(temperal_downsample=[False, True, True], **sizes, **statistics)


def clip(tokenizer: Any, *, projected: bool = False) -> Any:
    """CLIP's text encoder, with a projection of its pooled text or without."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.CLIPTextModelWithProjection(config) if projected else transformers.CLIPTextModel(config)


def t5(tokenizer: Any, width: int = 16) -> Any:
    """The encoder of T5 1.1."""
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes))


def umt5(tokenizer: Any) -> Any:
    """The encoder of UMT5: a position bias in every layer."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return transformers.UMT5EncoderModel(transformers.UMT5Config(vocab_size=len(tokenizer), **sizes))


def bert(tokenizer: Any) -> Any:
    """BERT, 77 positions."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 77}
    return transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **sizes))


def glm(tokenizer: Any) -> Any:
    """GLM 4."""
    config = transformers.GlmConfig(vocab_size=len(tokenizer), num_hidden_layers=3, pad_token_id=tokenizer.pad_token_id, **QWEN)
    return transformers.GlmModel(config)


def mistral3(tokenizer: Any, layers: int, kind: str = "Mistral3ForConditionalGeneration") -> Any:
    """Mistral 3 with its eyes, of which nothing is used."""
    text = {"model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": layers, "sliding_window": None, **QWEN}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = transformers.Mistral3Config(text_config=text, vision_config={"model_type": "pixtral", "patch_size": 14, **vision})
    return getattr(transformers, kind)(config)


def qwen25_vl(tokenizer: Any, layers: int = 3) -> Any:
    """Qwen 2.5 with its eyes, of which nothing is used."""
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": layers, **{name: size for name, size in QWEN.items() if name != "head_dim"}}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16, "fullatt_block_indexes": [0]}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def gemma2(tokenizer: Any) -> Any:
    """Gemma 2."""
    return transformers.Gemma2Model(transformers.Gemma2Config(vocab_size=len(tokenizer), **GEMMA))


def qwen3(tokenizer: Any, layers: int, kind: str) -> Any:
    """Qwen 3, as one of its classes."""
    config = transformers.Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=layers, tie_word_embeddings=True, **QWEN)
    return getattr(transformers, kind)(config)


def flow(shift: float = 1.0, **how: Any) -> Any:
    """Flow matching, Euler's steps."""
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, **how)
