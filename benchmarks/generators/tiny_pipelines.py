"""Generators of many families, tiny, with random weights, as diffusers saves them, for ``DiffusionPipeline.from_pretrained``.

Nothing is at its neutral value: norms, biases and gates that begin as ones or zeros are random too, so that an exchanged or forgotten part
changes the latents. Sides of 64 pixels are 8 × 8 latent cells (2 × 2 behind a decoder of 32).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from benchmarks.generators.tiny_packed_pipelines import PACKED
from benchmarks.generators.tiny_parts import (
    GEMMA,
    bert,
    clip,
    deep_compression_vae,
    flow,
    flux_vae,
    gemma2,
    glm,
    qwen3,
    qwen25_vl,
    t5,
    umt5,
    vae,
)
from benchmarks.generators.tiny_tokenizers import (
    bert_tokenizer,
    clip_tokenizer,
    gemma_tokenizer,
    glm_tokenizer,
    qwen_tokenizer,
    t5_tokenizer,
)

_NOISE: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_UNET: Mapping[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
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
    if family in PROCESSORS:
        index = json.loads((folder / "model_index.json").read_text())
        index["tokenizer"] = ["transformers", PROCESSORS[family]]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def library_pipeline(folder: Path, **how: Any) -> Any:
    """Return diffusers' own pipeline of a folder of ``tiny_pipeline``, without a progress bar.

    A part that is absent must be said to be None (diffusers 0.42.1 refuses its own folders else), and a processor needs torchvision: the
    tokenizer in it, which is all that these pipelines use of it, stands in.
    """
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, origin in index.items() if isinstance(origin, list) and origin[0] is None}
    processors = {name: None for name, origin in index.items() if isinstance(origin, list) and str(origin[1]).endswith("Processor")}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **{**absent, **processors, **how})
    for name in processors:
        if name not in absent:
            pipeline.register_modules(**{name: transformers.AutoTokenizer.from_pretrained(folder / name)})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _leave_neutral_values(part: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in part.parameters():
            if parameter.ndim == 2:
                parameter.mul_(1.5)
            if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
                parameter.add_(0.2 * torch.randn_like(parameter))
        for module in part.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)


def _prx(**changes: Any) -> Any:
    tokenizer = gemma_tokenizer(64)
    module = {"vocab_size": len(tokenizer), **GEMMA}
    whole = transformers.T5GemmaConfig(encoder=module, decoder=module)
    encoder = T5GemmaEncoder(whole.encoder)
    sizes = {"in_channels": 16, "context_in_dim": 16, "hidden_size": 32, "num_heads": 2, "depth": 2, "axes_dim": [8, 8]}
    transformer = diffusers.PRXTransformer2DModel(**{**sizes, **changes})
    return diffusers.PRXPipeline(
        transformer=transformer, scheduler=flow(3.0), text_encoder=encoder, tokenizer=tokenizer, vae=flux_vae(), default_sample_size=64
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
        text_encoder=gemma2(tokenizer),
        vae=deep_compression_vae(),
        transformer=_sana_transformer(changes),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
        ),
    )


def _sana_sprint(**changes: Any) -> Any:
    tokenizer = gemma_tokenizer()
    return diffusers.SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma2(tokenizer),
        vae=deep_compression_vae(),
        transformer=_sana_transformer({"guidance_embeds": True, "qk_norm": "rms_norm_across_heads", "timestep_scale": 1000.0, **changes}),
        scheduler=diffusers.SCMScheduler(),
    )


def _z_image(**changes: Any) -> Any:
    tokenizer = qwen_tokenizer()
    sizes: dict[str, Any] = {"in_channels": 16, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    sizes |= {"cap_feat_dim": 16, "axes_dims": [4, 6, 6], "axes_lens": [1024, 64, 64]}
    return diffusers.ZImagePipeline(
        scheduler=flow(3.0),
        vae=flux_vae(),
        text_encoder=qwen3(tokenizer, 3, "Qwen3Model"),
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
        "text_encoder": t5(tokenizer),
        "vae": vae(4, scaling_factor=0.13025),
        "transformer": diffusers.PixArtTransformer2DModel(**{**sizes, **changes}),
        "scheduler": diffusers.DPMSolverMultistepScheduler(),
    }
    return getattr(diffusers, kind)(**pipeline)


def _pixart_alpha(**changes: Any) -> Any:
    return _pixart("PixArtAlphaPipeline", changes)


def _pixart_sigma(**changes: Any) -> Any:
    return _pixart("PixArtSigmaPipeline", changes)


def _stable_diffusion_3(*, with_t5: bool = True, **changes: Any) -> Any:
    clip_words, t5_words = clip_tokenizer(), t5_tokenizer(77)
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
        scheduler=flow(3.0),
        vae=vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(clip_words, projected=True),
        tokenizer=clip_words,
        text_encoder_2=clip(clip_words, projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(t5_words, 48) if with_t5 else None,
        tokenizer_3=t5_words if with_t5 else None,
    )


def _stable_diffusion_3_without_t5(**changes: Any) -> Any:
    return _stable_diffusion_3(with_t5=False, **changes)


def _stable_diffusion(**changes: Any) -> Any:
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=vae(4, scaling_factor=0.18215),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**{**_UNET, "cross_attention_dim": 16, **changes}),
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl(**changes: Any) -> Any:
    tokenizer = clip_tokenizer()
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 16}
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(4, scaling_factor=0.13025),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, projected=True),
        tokenizer_2=clip_tokenizer(),
        unet=diffusers.UNet2DConditionModel(**{**_UNET, "cross_attention_dim": 32, **added, **changes}),
        scheduler=diffusers.EulerDiscreteScheduler(**_NOISE, steps_offset=1),
    )


def _latent_consistency(**changes: Any) -> Any:
    tokenizer = clip_tokenizer()
    return diffusers.LatentConsistencyModelPipeline(
        vae=vae(4, scaling_factor=0.18215),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**{**_UNET, "cross_attention_dim": 16, "time_cond_proj_dim": 32, **changes}),
        scheduler=diffusers.LCMScheduler(**_NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _aura_flow(**changes: Any) -> Any:
    tokenizer = t5_tokenizer()
    sizes = {
        "sample_size": 8,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "caption_projection_dim": 16,
        "pos_embed_max_size": 64,
    }
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=umt5(tokenizer),
        vae=vae(4, scaling_factor=0.13025),
        transformer=diffusers.AuraFlowTransformer2DModel(**{**sizes, **changes}),
        scheduler=flow(1.73),
    )


def _hunyuan_dit(**changes: Any) -> Any:
    words, t5_words = bert_tokenizer(), t5_tokenizer(256)
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "patch_size": 2,
        "sample_size": 8,
        "hidden_size": 16,
        "num_layers": 4,
        "cross_attention_dim": 16,
        "cross_attention_dim_t5": 16,
        "pooled_projection_dim": 16,
    }
    return diffusers.HunyuanDiTPipeline(
        vae=vae(4, scaling_factor=0.13025),
        text_encoder=bert(words),
        tokenizer=words,
        transformer=diffusers.HunyuanDiT2DModel(**{**sizes, **changes}),
        scheduler=diffusers.DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", steps_offset=1, beta_end=0.018),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5(t5_words),
        tokenizer_2=t5_words,
    )


def _kandinsky5(**changes: Any) -> Any:
    words, clip_words = qwen_tokenizer(), clip_tokenizer()
    sizes = {
        "in_visual_dim": 16,
        "out_visual_dim": 16,
        "in_text_dim": 16,
        "in_text_dim2": 16,
        "time_dim": 16,
        "model_dim": 16,
        "ff_dim": 32,
        "num_text_blocks": 1,
        "num_visual_blocks": 2,
        "axes_dims": (2, 2, 4),
    }
    return diffusers.Kandinsky5T2IPipeline(
        transformer=diffusers.Kandinsky5Transformer3DModel(**{**sizes, **changes}),
        vae=flux_vae(),
        text_encoder=qwen25_vl(words),
        tokenizer=words,
        text_encoder_2=clip(clip_words),
        tokenizer_2=clip_words,
        scheduler=flow(5.0),
    )


def _cogview4(**changes: Any) -> Any:
    tokenizer = glm_tokenizer()
    sizes = {
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "text_embed_dim": 16,
        "time_embed_dim": 16,
        "condition_dim": 8,
        "sample_size": 8,
        "rope_axes_dim": (16, 16),
    }
    return diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=glm(tokenizer),
        vae=vae(16, scaling_factor=1.0, shift_factor=0.0),
        transformer=diffusers.CogView4Transformer2DModel(**{**sizes, **changes}),
        scheduler=flow(1.0, use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
    )


# What stands in model_index.json for a tokenizer that is part of a processor, which needs torchvision.
PROCESSORS: Mapping[str, str] = {"flux2": "PixtralProcessor", "kandinsky5": "Qwen2_5_VLProcessor"}
PIPELINES: Mapping[str, Callable[..., Any]] = {
    "prx": _prx,
    "sana": _sana,
    "sana-sprint": _sana_sprint,
    "z-image": _z_image,
    "pixart-alpha": _pixart_alpha,
    "pixart-sigma": _pixart_sigma,
    "sd3": _stable_diffusion_3,
    "sd3-without-t5": _stable_diffusion_3_without_t5,
    "stable-diffusion": _stable_diffusion,
    "sdxl": _stable_diffusion_xl,
    "lcm": _latent_consistency,
    **PACKED,
    "auraflow": _aura_flow,
    "hunyuan-dit": _hunyuan_dit,
    "kandinsky5": _kandinsky5,
    "cogview4": _cogview4,
}
