"""PRX with random weights, at its real size or small: a transformer that runs on a CPU, and its decoder, FLUX.1's."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.featurize.random_models import on_meta, write_diffusers, write_weights
from benchmarks.generators.tiny_tokenizers import gemma_tokenizer
from lugpi_core.files import whole_folder


@dataclass(frozen=True, kw_only=True)
class PrxSizes:
    """Sizes of a PRX pipeline. The defaults are the real ones, except for the text encoder's depth: 26 layers would need 8 GB more.

    Attributes:
        px: image size.
        tokens: how many of a prompt are read.
        width, depth, heads: of the transformer.
        vae_channels: of the decoder's levels.
        text_width, text_heads, text_layers: of the text encoder.
    """

    px: int = 512
    tokens: int = 256
    width: int = 1792
    depth: int = 16
    heads: int = 28
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    text_width: int = 2304
    text_heads: int = 8
    text_layers: int = 2


# Not its native 512 px: a round of both ways takes over a minute there on two cores, and it takes many rounds to tell 3 %.
PRX_256 = PrxSizes(px=256)
SMALL_PRX = PrxSizes(
    px=64, tokens=32, width=64, depth=2, heads=2, vae_channels=(32, 32, 64, 64), text_width=64, text_heads=2, text_layers=2
)


def prx_folder(folder: Path, sizes: PrxSizes) -> Path:
    """Write a diffusers folder with random float32 weights and return it: 6 GB for the real sizes."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    tokenizer = gemma_tokenizer(sizes.tokens)
    index = {
        "_class_name": "PRXPipeline",
        "default_sample_size": sizes.px,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5GemmaEncoder"],
        "tokenizer": ["transformers", "GemmaTokenizer"],
        "transformer": ["diffusers", "PRXTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    with whole_folder(folder) as partial:
        (partial / "model_index.json").write_text(json.dumps(index))
        FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(partial / "scheduler")
        tokenizer.save_pretrained(partial / "tokenizer")
        write_diffusers(partial / "transformer", meta_transformer(sizes), torch.float32)
        write_diffusers(partial / "vae", _meta_vae(sizes), torch.float32)
        _write_text_encoder(partial / "text_encoder", sizes, len(tokenizer))
    return folder


def meta_transformer(sizes: PrxSizes) -> nn.Module:
    """Return the transformer on the meta device."""
    from diffusers import PRXTransformer2DModel

    axes = [sizes.width // sizes.heads // 2] * 2
    how = {"hidden_size": sizes.width, "depth": sizes.depth, "num_heads": sizes.heads, "axes_dim": axes}
    return on_meta(lambda: PRXTransformer2DModel(context_in_dim=sizes.text_width, **how))


def _meta_vae(sizes: PrxSizes) -> nn.Module:
    from diffusers import AutoencoderKL

    levels = len(sizes.vae_channels)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    scales = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}
    return on_meta(lambda: AutoencoderKL(latent_channels=16, block_out_channels=sizes.vae_channels, layers_per_block=2, **kinds, **scales))


def _write_text_encoder(folder: Path, sizes: PrxSizes, vocabulary: int) -> None:
    from transformers import T5GemmaConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    module: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": sizes.text_width,
        "intermediate_size": 4 * sizes.text_width,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.text_heads,
        "num_key_value_heads": sizes.text_heads // 2,
    }
    config = T5GemmaConfig(encoder=module, decoder=module)
    write_weights(folder / "model.safetensors", on_meta(lambda: T5GemmaEncoder(config.encoder)), torch.float32)
    config.save_pretrained(folder)
