"""Generators of many families, tiny, with random weights, as diffusers saves them, for ``DiffusionPipeline.from_pretrained``.

Nothing is at its neutral value: norms, biases and gates that begin as ones or zeros are random too, so that an exchanged or forgotten part
changes the latents. Sides of 64 pixels are 8 × 8 latent cells (2 × 2 behind a decoder of 32).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from tests.support.tiny_tokenizers import clip_tokenizer, gemma_tokenizer, qwen_tokenizer, t5_tokenizer

_GEMMA: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 8,
    "query_pre_attn_scalar": 8,
}
_QWEN: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}


def tiny_pipeline(family: str, folder: Path, **changes: Any) -> Path:
    """Write a pipeline; return its folder.

    Args:
        family: one of ``PIPELINES``.
        folder: where.
        changes: of the denoiser's configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(map(ord, family)))
        pipeline = PIPELINES[family](**changes)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                _leave_neutral_values(part)
    pipeline.save_pretrained(folder)
    if family == "prx":  # as its authors save it: the encoder's configuration inside that of the whole model
        module = pipeline.text_encoder.config.to_dict()
        transformers.T5GemmaConfig(encoder=module, decoder=module).save_pretrained(folder / "text_encoder")
    return folder


def _leave_neutral_values(part: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in part.parameters():
            if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
                parameter.add_(0.2 * torch.randn_like(parameter))
        for module in part.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)


def _vae(channels: int, **how: Any) -> Any:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = {"block_out_channels": (8, 8, 8, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 64}
    return diffusers.AutoencoderKL(latent_channels=channels, **kinds, **widths, **how)


def _flux_vae() -> Any:
    """FLUX.1's, which many families decode with: shifted, without convolutions beside the latents."""
    return _vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)


def _deep_compression_vae() -> Any:
    """DC-AE: 32 pixels a latent cell."""
    sides = {"encoder_block_out_channels": (8,) * 6, "decoder_block_out_channels": (8,) * 6, "attention_head_dim": 4}
    layers = {"encoder_layers_per_block": (1,) * 6, "decoder_layers_per_block": (1,) * 6}
    scales = {"encoder_qkv_multiscales": ((),) * 5 + ((5,),), "decoder_qkv_multiscales": ((),) * 5 + ((5,),)}
    kinds = {
        "encoder_block_types": ("ResBlock",) * 5 + ("EfficientViTBlock",),
        "decoder_block_types": ("ResBlock",) * 5 + ("EfficientViTBlock",),
    }
    return diffusers.AutoencoderDC(latent_channels=8, scaling_factor=0.41407, **sides, **layers, **scales, **kinds)


def _clip(tokenizer: Any, *, projected: bool = False) -> Any:
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


def _t5(tokenizer: Any, width: int = 16) -> Any:
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes))


def _gemma2(tokenizer: Any) -> Any:
    return transformers.Gemma2Model(transformers.Gemma2Config(vocab_size=len(tokenizer), **_GEMMA))


def _qwen3(tokenizer: Any, layers: int, kind: str) -> Any:
    config = transformers.Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=layers, tie_word_embeddings=True, **_QWEN)
    return getattr(transformers, kind)(config)


def _flow(shift: float = 1.0, **how: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, **how)


def _prx(**changes: Any) -> Any:
    tokenizer = gemma_tokenizer(64)
    module = {"vocab_size": len(tokenizer), **_GEMMA}
    whole = transformers.T5GemmaConfig(encoder=module, decoder=module)
    encoder = T5GemmaEncoder(whole.encoder)
    sizes = {"in_channels": 16, "context_in_dim": 16, "hidden_size": 32, "num_heads": 2, "depth": 2, "axes_dim": [8, 8]}
    transformer = diffusers.PRXTransformer2DModel(**{**sizes, **changes})
    return diffusers.PRXPipeline(
        transformer=transformer, scheduler=_flow(3.0), text_encoder=encoder, tokenizer=tokenizer, vae=_flux_vae(), default_sample_size=64
    )


def _sana_transformer(changes: Mapping[str, Any]) -> Any:
    sizes = {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 16,
        "sample_size": 4,
    }
    return diffusers.SanaTransformer2DModel(**{**sizes, **changes})


def _sana(**changes: Any) -> Any:
    tokenizer = gemma_tokenizer()
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=_gemma2(tokenizer),
        vae=_deep_compression_vae(),
        transformer=_sana_transformer(changes),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
        ),
    )


def _sana_sprint(**changes: Any) -> Any:
    tokenizer = gemma_tokenizer()
    return diffusers.SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=_gemma2(tokenizer),
        vae=_deep_compression_vae(),
        transformer=_sana_transformer({"guidance_embeds": True, "qk_norm": "rms_norm_across_heads", "timestep_scale": 1000.0, **changes}),
        scheduler=diffusers.SCMScheduler(),
    )


def _z_image(**changes: Any) -> Any:
    tokenizer = qwen_tokenizer()
    sizes = {"in_channels": 16, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16}
    sizes |= {"axes_dims": [4, 6, 6], "axes_lens": [1024, 64, 64]}
    return diffusers.ZImagePipeline(
        scheduler=_flow(3.0),
        vae=_flux_vae(),
        text_encoder=_qwen3(tokenizer, 3, "Qwen3Model"),
        tokenizer=tokenizer,
        transformer=diffusers.ZImageTransformer2DModel(**{**sizes, **changes}),
    )


def _pixart(kind: str, changes: Mapping[str, Any]) -> Any:
    tokenizer = t5_tokenizer()
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "cross_attention_dim": 16,
        "caption_channels": 16,
        "sample_size": 8,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "use_additional_conditions": False,
    }
    pipeline = {
        "tokenizer": tokenizer,
        "text_encoder": _t5(tokenizer),
        "vae": _vae(4, scaling_factor=0.13025),
        "transformer": diffusers.PixArtTransformer2DModel(**{**sizes, **changes}),
        "scheduler": diffusers.DPMSolverMultistepScheduler(),
    }
    return getattr(diffusers, kind)(**pipeline)


def _pixart_alpha(**changes: Any) -> Any:
    return _pixart("PixArtAlphaPipeline", changes)


def _pixart_sigma(**changes: Any) -> Any:
    return _pixart("PixArtSigmaPipeline", changes)


def _stable_diffusion_3(*, with_t5: bool = True, **changes: Any) -> Any:
    clip, t5 = clip_tokenizer(), t5_tokenizer(77)
    sizes = {
        "sample_size": 8,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 24,
    }
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(**{**sizes, **changes}),
        scheduler=_flow(3.0),
        vae=_vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(clip, projected=True),
        tokenizer=clip,
        text_encoder_2=_clip(clip, projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=_t5(t5, 48) if with_t5 else None,
        tokenizer_3=t5 if with_t5 else None,
    )


def _stable_diffusion_3_without_t5(**changes: Any) -> Any:
    return _stable_diffusion_3(with_t5=False, **changes)


PIPELINES: Mapping[str, Callable[..., Any]] = {
    "prx": _prx,
    "sana": _sana,
    "sana-sprint": _sana_sprint,
    "z-image": _z_image,
    "pixart-alpha": _pixart_alpha,
    "pixart-sigma": _pixart_sigma,
    "sd3": _stable_diffusion_3,
    "sd3-without-t5": _stable_diffusion_3_without_t5,
}
