"""Generators whose transformers read latents as a sequence, and Lumina-Image 2, tiny, with random weights."""

from collections.abc import Callable, Mapping
from typing import Any

import diffusers

from benchmarks.generators.tiny_parts import clip, flow, flux2_vae, flux_vae, gemma2, mistral3, qwen3, qwen25_vl, qwen_vae, t5
from benchmarks.generators.tiny_tokenizers import clip_tokenizer, gemma_tokenizer, mistral_tokenizer, qwen_tokenizer, t5_tokenizer

_FLUX: Mapping[str, Any] = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (2, 2, 4),
}


def _flux(*, guidance_embeds: bool, **changes: Any) -> Any:
    clip_words, t5_words = clip_tokenizer(), t5_tokenizer()
    sizes = {**_FLUX, "pooled_projection_dim": 16, "guidance_embeds": guidance_embeds}
    return diffusers.FluxPipeline(
        scheduler=flow(3.0, use_dynamic_shifting=True) if guidance_embeds else flow(1.0),
        vae=flux_vae(),
        text_encoder=clip(clip_words),
        tokenizer=clip_words,
        text_encoder_2=t5(t5_words),
        tokenizer_2=t5_words,
        transformer=diffusers.FluxTransformer2DModel(**{**sizes, **changes}),
    )


def _flux_schnell(**changes: Any) -> Any:
    return _flux(guidance_embeds=False, **changes)


def _flux_dev(**changes: Any) -> Any:
    return _flux(guidance_embeds=True, **changes)


def _flux2_transformer(**changes: Any) -> Any:
    sizes = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "axes_dims_rope": (2, 2, 2, 2),
        "timestep_guidance_channels": 16,
    }
    return diffusers.Flux2Transformer2DModel(**{**sizes, **changes})


def _flux2_klein(*, is_distilled: bool = True, **changes: Any) -> Any:
    tokenizer = qwen_tokenizer()
    return diffusers.Flux2KleinPipeline(
        scheduler=flow(3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=qwen3(tokenizer, 29, "Qwen3ForCausalLM"),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(**{"guidance_embeds": False, **changes}),
        is_distilled=is_distilled,
    )


def _flux2_klein_base(**changes: Any) -> Any:
    return _flux2_klein(is_distilled=False, **changes)


def _flux2(**changes: Any) -> Any:
    tokenizer = mistral_tokenizer()
    return diffusers.Flux2Pipeline(
        scheduler=flow(3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=mistral3(tokenizer, 31),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(**changes),
    )


def _qwen_image(**changes: Any) -> Any:
    tokenizer = qwen_tokenizer()
    sizes = {
        "in_channels": 32,
        "out_channels": 8,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": (2, 2, 4),
    }
    return diffusers.QwenImagePipeline(
        scheduler=flow(1.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02),
        vae=qwen_vae(),
        text_encoder=qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.QwenImageTransformer2DModel(**{**sizes, **changes}),
    )


def _lumina2(**changes: Any) -> Any:
    tokenizer = gemma_tokenizer()
    sizes = {
        "sample_size": 8,
        "hidden_size": 16,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 8,
        "axes_dim_rope": (2, 2, 4),
        "cap_feat_dim": 16,
    }
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(**{**sizes, **changes}),
        scheduler=flow(6.0),
        vae=flux_vae(),
        text_encoder=gemma2(tokenizer),
        tokenizer=tokenizer,
    )


def _chroma(**changes: Any) -> Any:
    tokenizer = t5_tokenizer()
    sizes = {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 1}
    return diffusers.ChromaPipeline(
        scheduler=flow(3.0, use_dynamic_shifting=True),
        vae=flux_vae(),
        text_encoder=t5(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.ChromaTransformer2DModel(**{**_FLUX, **sizes, **changes}),
    )


def _ovis(**changes: Any) -> Any:
    tokenizer = qwen_tokenizer()
    return diffusers.OvisImagePipeline(
        scheduler=flow(3.0, use_dynamic_shifting=True),
        vae=flux_vae(),
        text_encoder=qwen3(tokenizer, 2, "Qwen3Model"),
        tokenizer=tokenizer,
        transformer=diffusers.OvisImageTransformer2DModel(**{**_FLUX, **changes}),
    )


def _longcat(**changes: Any) -> Any:
    tokenizer = qwen_tokenizer()
    return diffusers.LongCatImagePipeline(
        scheduler=flow(3.0, use_dynamic_shifting=True),
        vae=flux_vae(),
        text_encoder=qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        text_processor=tokenizer,
        transformer=diffusers.LongCatImageTransformer2DModel(**{**_FLUX, "pooled_projection_dim": 16, **changes}),
    )


def _ernie(**changes: Any) -> Any:
    tokenizer = mistral_tokenizer()
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 32, "in_channels": 16, "out_channels": 16}
    return diffusers.ErnieImagePipeline(
        transformer=diffusers.ErnieImageTransformer2DModel(**{**sizes, "text_in_dim": 16, "rope_axes_dim": (2, 2, 4), **changes}),
        vae=flux2_vae(),
        text_encoder=mistral3(tokenizer, 3, "Mistral3Model"),
        tokenizer=tokenizer,
        scheduler=flow(3.0),
    )


PACKED: Mapping[str, Callable[..., Any]] = {
    "flux-schnell": _flux_schnell,
    "flux-dev": _flux_dev,
    "flux2-klein": _flux2_klein,
    "flux2-klein-base": _flux2_klein_base,
    "flux2": _flux2,
    "qwen-image": _qwen_image,
    "lumina2": _lumina2,
    "chroma": _chroma,
    "ovis": _ovis,
    "longcat": _longcat,
    "ernie": _ernie,
}
