"""FLOPs of one row in each stage, counted by torch's ``FlopCounterMode`` on the meta device: no weight is read, no number is computed.

A stage is a module of diffusers, transformers or open_clip, built from its configuration as the run will load it, and called once.

Shapes: B rows, h × w latent cells, S the encoder's side, T tokens, D width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from featurize.encode.encoders import EncoderFiles
from featurize.generate.generators import Generator
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import read_config, reason

PROMPT, DENOISE, DECODE = "prompt", "denoise", "decode"
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_SDXL_TIME_IDS = 6  # original size, crop and target size, two numbers each


def stage_flops(generator: Generator, encoders: Sequence[EncoderFiles], *, decoder_folder: Path | None = None) -> dict[str, float]:
    """Return the FLOPs of one row in each stage: ``prompt`` (one prompt through the text encoders), ``denoise`` (one forward of the UNet;
    guidance doubles the rows), ``decode`` (one image) and ``encode <name>`` (one image) for each encoder.

    A multiply-add of matrix products, convolutions and attention is 2 FLOPs; element-wise operations are not counted.

    Args:
        generator: a Stable Diffusion 1, 2 or XL folder.
        encoders: the image encoders of the run.
        decoder_folder: an AutoencoderTiny of diffusers that decodes instead of the generator's own VAE.

    Raises:
        InputError: a configuration is missing, or no model can be built from it.
    """
    try:
        return {
            PROMPT: _prompt_flops(generator),
            DENOISE: _denoise_flops(generator),
            DECODE: _decode_flops(generator, decoder_folder),
            **{f"encode {files.name}": _encode_flops(files) for files in encoders},
        }
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(
            got=f"{decoder_folder or generator.folder}, whose configurations define no model ({reason(error)})",
            expected="a whole diffusers folder",
            do="restore its configurations, as save_pretrained() writes them",
        ) from None


def decode_flops(generator: Generator, *, decoder_folder: Path | None = None) -> float:
    """Return the FLOPs of decoding one image; arguments and errors are those of ``stage_flops``."""
    return stage_flops(generator, (), decoder_folder=decoder_folder)[DECODE]


def _count(build: Callable[[], Any], *inputs: Any, method: str = "__call__", **named: Any) -> float:
    with torch.inference_mode():
        with torch.device("meta"):
            module = build().eval()
        # Not on that device by default: what a model keeps from a call, as BEiT does its index of positions, would be of no use later.
        with FlopCounterMode(display=False) as counter:
            getattr(module, method)(*inputs, **named)
    return float(counter.get_total_flops())


def _prompt_flops(generator: Generator) -> float:
    import transformers

    index = read_config(generator.folder / "model_index.json")
    flops = 0.0
    for name in _TEXT_ENCODERS:
        if not index.get(name, [None])[0]:
            continue
        kind = getattr(transformers, index[name][1])
        config = kind.config_class.from_pretrained(generator.folder / name)
        ids_BT = torch.zeros(1, config.max_position_embeddings, dtype=torch.long, device="meta")
        flops += _count(partial(kind, config), ids_BT)
    return flops


def _denoise_flops(generator: Generator) -> float:
    from diffusers import UNet2DConditionModel

    config = read_config(generator.folder / "unet" / "config.json")
    text_encoder = next(name for name in _TEXT_ENCODERS if (generator.folder / name).is_dir())
    prompt_tokens = read_config(generator.folder / text_encoder / "config.json").get("max_position_embeddings", 77)
    width = config["cross_attention_dim"]
    conditions: dict[str, Any] | None = None
    if config.get("addition_embed_type") == "text_time":
        # Stable Diffusion XL adds the pooled prompt and the image's sizes to the time step.
        pooled = config["projection_class_embeddings_input_dim"] - _SDXL_TIME_IDS * config["addition_time_embed_dim"]
        conditions = {"text_embeds": torch.zeros(1, pooled, device="meta"), "time_ids": torch.zeros(1, _SDXL_TIME_IDS, device="meta")}
    prompt_BTD = torch.zeros(1, prompt_tokens, max(width) if isinstance(width, list) else width, device="meta")
    latents_BChw = torch.zeros(1, *generator.latent_shape, device="meta")
    step = torch.zeros((), dtype=torch.long, device="meta")
    return _count(partial(UNet2DConditionModel.from_config, config), latents_BChw, step, prompt_BTD, added_cond_kwargs=conditions)


def _decode_flops(generator: Generator, decoder_folder: Path | None) -> float:
    from diffusers import AutoencoderKL, AutoencoderTiny

    config = read_config((decoder_folder or generator.folder / "vae") / "config.json")
    kind = AutoencoderTiny if decoder_folder else AutoencoderKL
    latents_BChw = torch.zeros(1, *generator.latent_shape, device="meta")
    return _count(partial(kind.from_config, config), latents_BChw, method="decode")


def _encode_flops(files: EncoderFiles) -> float:
    pixels_B3SS = torch.zeros(1, 3, files.preprocessing.size_px, files.preprocessing.size_px, device="meta")
    tower = _open_clip_tower if files.family == "open_clip" else _transformers_tower
    return _count(partial(tower, files), pixels_B3SS)


def _open_clip_tower(files: EncoderFiles) -> nn.Module:
    import open_clip

    in_folder = read_config(files.folder / "open_clip_config.json")["model_cfg"] if files.architecture is None else None
    config = in_folder or open_clip.get_model_config(files.architecture)
    # The text tower is not run; the smallest possible one stands in for it.
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    quick_gelu = files.quick_gelu or bool(config.get("quick_gelu"))
    vision = {**config["vision_cfg"], "image_size": files.preprocessing.size_px}
    visual: nn.Module = open_clip.CLIP(config["embed_dim"], vision, text, quick_gelu=quick_gelu).visual
    return visual


def _transformers_tower(files: EncoderFiles) -> nn.Module:
    import transformers

    is_clip = files.family in ("clip", "clip_vision_model")
    config = (transformers.CLIPVisionConfig if is_clip else transformers.AutoConfig).from_pretrained(files.folder)
    config.image_size = files.preprocessing.size_px  # interpolated positions are as many
    if files.family == "vit_mae":
        config.mask_ratio = 0.0
    tower: nn.Module = (transformers.CLIPVisionModel if is_clip else transformers.AutoModel.from_config)(config)
    return tower
