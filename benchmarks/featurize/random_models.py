"""Generators and encoders of the real architectures with random weights, built from their sizes alone: nothing is downloaded.

The cost of a model depends on its shapes, not on its weights; its images mean nothing. Modules are built on the meta device, where they
take no memory, and their weights are written part by part in the formats of diffusers, transformers and open_clip.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lugpi_core.files import whole_folder
from lugpi_core.runtime.pretrained import embedded_model

_SEED = 0
_CONTEXT = 77
_OPENAI_MEAN, _OPENAI_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """Sizes of a Stable Diffusion 2 text encoder; the default is the real one, the text tower of OpenCLIP's ViT-H/14."""

    vocabulary: int = 49408
    width: int = 1024
    hidden: int = 4096
    layers: int = 23
    heads: int = 16


@dataclass(frozen=True, kw_only=True)
class GeneratorSizes:
    """Sizes of a Stable Diffusion 2 pipeline; the defaults are the real ones.

    Attributes:
        px: image size; the latents are an eighth of it.
        prediction_type: what the UNet predicts: the noise, or the velocity (768 px).
        unet_heads: attention heads by level, which diffusers calls ``attention_head_dim``.
    """

    px: int = 512
    prediction_type: str = "epsilon"
    unet_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    unet_heads: tuple[int, ...] = (5, 10, 20, 20)
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    text: TextSizes = field(default_factory=TextSizes)


SD2_512 = GeneratorSizes(px=512)
SD2_768 = GeneratorSizes(px=768, prediction_type="v_prediction")
# A small stand-in with every part of the real one, for smoke runs.
SMALL = GeneratorSizes(
    px=64,
    unet_channels=(32, 32, 64, 64),
    unet_heads=(1, 1, 2, 2),
    vae_channels=(32, 32, 64, 64),
    text=TextSizes(vocabulary=8192, width=64, hidden=128, layers=2, heads=4),
)


def meta_unet(sizes: GeneratorSizes) -> nn.Module:
    """Return the UNet on the meta device."""
    from diffusers import UNet2DConditionModel

    return on_meta(
        lambda: UNet2DConditionModel(
            sample_size=sizes.px // 8,
            block_out_channels=sizes.unet_channels,
            layers_per_block=2,
            cross_attention_dim=sizes.text.width,
            attention_head_dim=sizes.unet_heads,
            use_linear_projection=True,
        )
    )


def meta_vae(sizes: GeneratorSizes) -> nn.Module:
    """Return the VAE, encoder and decoder, on the meta device."""
    from diffusers import AutoencoderKL

    return on_meta(
        lambda: AutoencoderKL(
            sample_size=sizes.px,
            block_out_channels=sizes.vae_channels,
            down_block_types=("DownEncoderBlock2D",) * len(sizes.vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(sizes.vae_channels),
            layers_per_block=2,
            norm_num_groups=32,
            latent_channels=4,
        )
    )


def meta_text_encoder(sizes: TextSizes) -> nn.Module:
    """Return the text encoder on the meta device."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        projection_dim=sizes.width // 2,
        hidden_act="gelu",
        max_position_embeddings=_CONTEXT,
    )
    return on_meta(lambda: CLIPTextModel(config))


def meta_tiny_decoder() -> nn.Module:
    """Return TAESD on the meta device: diffusers' own defaults."""
    from diffusers import AutoencoderTiny

    return on_meta(AutoencoderTiny)


def meta_clip(architecture: str) -> nn.Module:
    """Return the open_clip model of that name on the meta device, with its ``visual`` in full size."""
    import open_clip

    return on_meta(lambda: open_clip.CLIP(**_clip_config(architecture)))


def sd2_folder(folder: Path, sizes: GeneratorSizes, dtype: torch.dtype) -> Path:
    """Write a diffusers folder with random weights of ``dtype`` and return it: 2.6 GB in float16, 5.2 GB in float32 for the real sizes."""
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=sizes.prediction_type,
    )
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    with whole_folder(folder) as partial:
        (partial / "model_index.json").write_text(json.dumps(index))
        scheduler.save_pretrained(partial / "scheduler")
        tokenizer = CLIPTokenizer.from_pretrained(embedded_model("generator") / "tokenizer", model_max_length=_CONTEXT)
        tokenizer.save_pretrained(partial / "tokenizer")
        write_diffusers(partial / "unet", meta_unet(sizes), dtype)
        write_diffusers(partial / "vae", meta_vae(sizes), dtype)
        text_encoder: Any = meta_text_encoder(sizes.text)
        write_weights(partial / "text_encoder" / "model.safetensors", text_encoder, dtype)
        text_encoder.config.architectures = ["CLIPTextModel"]
        # Token ids of the embedded tokenizer, which stands in for the real one: texts have the same length.
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(text_encoder.config, token, getattr(tokenizer, token))
        text_encoder.config.save_pretrained(partial / "text_encoder")
    return folder


def tiny_decoder_folder(folder: Path, dtype: torch.dtype) -> Path:
    """Write TAESD's architecture with random weights, as diffusers loads it, and return the folder."""
    with whole_folder(folder) as partial:
        write_diffusers(partial, meta_tiny_decoder(), dtype)
    return folder


def encoder_folder(folder: Path, architecture: str, dtype: torch.dtype) -> Path:
    """Write an open_clip folder of ``architecture`` (ViT-B-32, ViT-B-16, ViT-L-14, …) with random weights and return it.

    The image tower has its real size; the text tower, which is never called, is small.
    """
    preprocess = {"mean": _OPENAI_MEAN, "std": _OPENAI_STD, "interpolation": "bicubic"}
    config = {"model_cfg": _clip_config(architecture), "preprocess_cfg": preprocess}
    with whole_folder(folder) as partial:
        write_weights(partial / "open_clip_model.safetensors", meta_clip(architecture), dtype)
        (partial / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def _clip_config(architecture: str) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_model_config(architecture)
    assert config is not None, architecture
    small_text = {"context_length": _CONTEXT, "vocab_size": 512, "width": 64, "heads": 4, "layers": 1}
    return {**config, "text_cfg": small_text, "quick_gelu": True}  # OpenAI's weights have it


def on_meta(build: Callable[[], Any]) -> nn.Module:
    """Return a module on the meta device, where it takes no memory."""
    with torch.device("meta"):
        module: nn.Module = build()
    return module


def write_diffusers(folder: Path, model: Any, dtype: torch.dtype) -> None:
    """Write a model of diffusers, built on the meta device, with random weights."""
    write_weights(folder / "diffusion_pytorch_model.safetensors", model, dtype)
    model.save_config(folder)


def write_weights(path: Path, model: nn.Module, dtype: torch.dtype) -> None:
    """Write random weights of a module that was built on the meta device."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(_random_weights(model, dtype), path, metadata={"format": "pt"})


def _random_weights(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return a state dict that keeps activations near 1 at any depth, within the range of float16.

    Matrices and kernels are normal with variance 1 / fan-in; norms are the identity, biases zero.
    """
    random = torch.Generator().manual_seed(_SEED)
    weights = {}
    for name, like in model.state_dict().items():
        if like.ndim < 2 and name.endswith("bias"):
            weights[name] = torch.zeros(like.shape, dtype=dtype)
        elif like.ndim < 2 and name.endswith("weight"):
            weights[name] = torch.ones(like.shape, dtype=dtype)
        else:
            fan_in = max(1, math.prod(like.shape[1:]))
            weights[name] = torch.empty(like.shape, dtype=dtype).normal_(std=fan_in**-0.5, generator=random)
    return weights
