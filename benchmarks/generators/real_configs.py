"""The presets' models at their real sizes: folders with configurations and no weights, for what is counted on the meta device.

Only what differs from the defaults of the classes in diffusers 0.42.1 and transformers 5.23 is written here, as the models' own
``config.json`` say it; where they could not be read, from the source that stands beside it. The counted parameters are in the record
(``python -m benchmarks card``), beside what the authors state.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurize.generate.families import family_of
from featurize.generate.generators import Generator
from featurize.generate.presets import PRESETS

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RealModel:
    """The configurations of a pipeline.

    Attributes:
        pipeline: its class.
        parts: by folder: library, class, and what differs from the defaults of the class.
        scheduler: its class, and what differs.
        tokens: that the tokenizer reads, where the family asks it.
        index: further fields of ``model_index.json``.
    """

    pipeline: str
    parts: Mapping[str, tuple[str, str, Config]]
    scheduler: tuple[str, Config]
    tokens: int | None = None
    index: Config | None = None


# The decoder of Stable Diffusion 1, 2 and XL; 16 channels in FLUX.1's, which Z-Image and PRX use too.
_VAE: Config = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
_XL_VAE: Config = {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025}
_FLUX_VAE: Config = {
    **_VAE,
    "sample_size": 1024,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_SD2_UNET: Config = {
    "sample_size": 64,
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_XL_UNET: Config = {
    "sample_size": 128,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_QWEN3_4B: Config = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
_T5_XXL: Config = {
    "model_type": "t5",
    "d_model": 4096,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
}
_GEMMA2_2B: Config = {"model_type": "gemma2"}  # the class's defaults
_FLOW: tuple[str, Config] = ("FlowMatchEulerDiscreteScheduler", {})
_SHIFTED: tuple[str, Config] = ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0})


def _clip(width: int, layers: int, heads: int, *, projection: int = 512) -> Config:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": "clip_text_model", "projection_dim": projection, **sizes}


def _sd2(sample_size: int) -> RealModel:
    return RealModel(
        pipeline="StableDiffusionPipeline",
        parts={
            "unet": ("diffusers", "UNet2DConditionModel", {**_SD2_UNET, "sample_size": sample_size}),
            "vae": ("diffusers", "AutoencoderKL", _VAE),
            "text_encoder": ("transformers", "CLIPTextModel", _clip(1024, 23, 16)),
        },
        scheduler=("DDIMScheduler", {}),
    )


# hidden width 3,072: num_attention_heads × 128. From transformer/config.json of black-forest-labs/FLUX.2-klein-4B.
_KLEIN = RealModel(
    pipeline="Flux2KleinPipeline",
    parts={
        "transformer": (
            "diffusers",
            "Flux2Transformer2DModel",
            {
                "num_layers": 5,
                "num_single_layers": 20,
                "num_attention_heads": 24,
                "joint_attention_dim": 7680,
                "guidance_embeds": False,
            },
        ),
        "vae": ("diffusers", "AutoencoderKLFlux2", {}),
        "text_encoder": ("transformers", "Qwen3ForCausalLM", _QWEN3_4B),
    },
    scheduler=_SHIFTED,
    index={"is_distilled": True},
)
# The classes' defaults; depth and widths as in Photoroom's cards.
_PRX = RealModel(
    pipeline="PRXPipeline",
    parts={
        "transformer": ("diffusers", "PRXTransformer2DModel", {"axes_dim": [32, 32]}),
        "vae": ("diffusers", "AutoencoderKL", _FLUX_VAE),
        "text_encoder": ("transformers", "T5GemmaEncoder", {"model_type": "t5gemma"}),
    },
    scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    tokens=256,
    index={"default_sample_size": 512},
)
_DC_AE_BLOCKS = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3

MODELS: Mapping[str, RealModel] = {
    "fast": _sd2(64),
    "paper": _sd2(96),
    "flux2-klein": _KLEIN,
    "flux2-klein-base": RealModel(pipeline=_KLEIN.pipeline, parts=_KLEIN.parts, scheduler=_SHIFTED, index={"is_distilled": False}),
    "prx": _PRX,
    "prx-base": _PRX,
    "sdxl-lightning": RealModel(
        pipeline="StableDiffusionXLPipeline",
        parts={
            "unet": ("diffusers", "UNet2DConditionModel", _XL_UNET),
            "vae": ("diffusers", "AutoencoderKL", _XL_VAE),
            "text_encoder": ("transformers", "CLIPTextModel", _clip(768, 12, 12, projection=768)),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", _clip(1280, 32, 20, projection=1280)),
        },
        scheduler=("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ),
    # Decoder: mit-han-lab/dc-ae-f32c32-sana-1.0.
    "sana-sprint": RealModel(
        pipeline="SanaSprintPipeline",
        parts={
            "transformer": ("diffusers", "SanaTransformer2DModel", {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}),
            "vae": (
                "diffusers",
                "AutoencoderDC",
                {
                    "encoder_block_types": _DC_AE_BLOCKS,
                    "decoder_block_types": _DC_AE_BLOCKS,
                    "scaling_factor": 0.41407,
                    "downsample_block_type": "conv",
                    "upsample_block_type": "interpolate",
                },
            ),
            "text_encoder": ("transformers", "Gemma2Model", _GEMMA2_2B),
        },
        scheduler=("SCMScheduler", {}),
    ),
    "z-image-turbo": RealModel(
        pipeline="ZImagePipeline",
        parts={
            "transformer": ("diffusers", "ZImageTransformer2DModel", {"axes_lens": [1536, 512, 512]}),
            "vae": ("diffusers", "AutoencoderKL", _FLUX_VAE),
            "text_encoder": ("transformers", "Qwen3Model", _QWEN3_4B),
        },
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ),
    "pixart-sigma": RealModel(
        pipeline="PixArtSigmaPipeline",
        parts={
            "transformer": ("diffusers", "PixArtTransformer2DModel", {"caption_channels": 4096, "sample_size": 64}),
            "vae": ("diffusers", "AutoencoderKL", _XL_VAE),
            "text_encoder": ("transformers", "T5EncoderModel", _T5_XXL),
        },
        scheduler=("DPMSolverMultistepScheduler", {}),
    ),
}


def real_generator(folder: Path, preset: str) -> Generator:
    """Write a preset's configurations into a folder and return its generator, which has no weights."""
    model, settings = MODELS[preset], PRESETS[preset]
    index: dict[str, Any] = {"_class_name": model.pipeline, **(model.index or {})}
    for part, (library, kind, config) in model.parts.items():
        index[part] = [library, kind]
        _write(folder / part / "config.json", _whole(library, kind, config))
    index["scheduler"] = ["diffusers", model.scheduler[0]]
    _write(folder / "scheduler" / "scheduler_config.json", {"_class_name": model.scheduler[0], **model.scheduler[1]})
    if model.tokens is not None:
        _write(folder / "tokenizer" / "tokenizer_config.json", {"model_max_length": model.tokens})
    _write(folder / "model_index.json", index)
    family = family_of(folder, index)
    family.check()
    size_px = settings.size_px or family.native_px
    return Generator(
        name=preset,
        folder=folder,
        revision=None,
        weights_hash="",
        variant=None,
        pipeline_class=model.pipeline,
        size_px=size_px,
        latent_shape=family.latent_shape(size_px),
        settings=settings,
        found_family=family,
    )


def _whole(library: str, kind: str, config: Config) -> dict[str, Any]:
    """Return a configuration with the defaults of its class."""
    import diffusers
    import transformers

    if library == "diffusers":
        parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
        return {"_class_name": kind, **defaults, **config}
    if config["model_type"] == "t5gemma":
        return dict(transformers.T5GemmaConfig().to_dict())
    return dict(getattr(transformers, kind).config_class.from_dict(dict(config)).to_dict())


def _write(path: Path, config: Config) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
