"""The embedded generator, image encoders and tiny decoder: small models of the real ones' classes, so that there is one code path.

Their weights are random with a fixed seed, so their pictures carry no meaning. They are made at first use, in the cache folder, in the
formats that diffusers, open_clip and transformers load: nothing but this file knows that they are small.
"""

import json
from pathlib import Path
from typing import Any

from lugpi_core.files import cache_folder, whole_folder
from lugpi_core.torchvision_ops import allow_torchvision_import

# Part of the folder's name: another recipe is another folder.
_VERSION = 2
_SEED = 0
_SIDE_PX = 64
_PATCH_PX = 16
_CONTEXT = 77


def embedded_folder() -> Path:
    """Return the folder with ``generator/`` (Stable Diffusion), ``clip-demo/`` (open_clip), ``vit-demo/`` (ViT) and ``tiny/`` (a TAESD for
    the generator's latents), making it at first use."""
    folder = cache_folder() / f"embedded-images-{_VERSION}"
    if not folder.is_dir():
        import torch

        allow_torchvision_import()
        with whole_folder(folder) as partial, torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            _make_generator(partial / "generator")
            _make_clip(partial / "clip-demo")
            _make_vit(partial / "vit-demo")
            _make_tiny(partial / "tiny")  # the last: what is made before it keeps its weights
    return folder


def _make_generator(folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _make_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=_SIDE_PX // 8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        sample_size=_SIDE_PX,
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def _make_tokenizer() -> Any:
    """Return a CLIPTokenizer whose vocabulary is the 256 bytes, each inside a word and at its end: it reads any text, a byte a token."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=_CONTEXT)


def _make_clip(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    model = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": _SIDE_PX, "layers": 2, "width": 64, "head_width": 16, "patch_size": _PATCH_PX},
        "text_cfg": {"context_length": _CONTEXT, "vocab_size": 512, "width": 64, "heads": 4, "layers": 1},
    }
    folder.mkdir()
    clip = open_clip.CLIP(**model)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))


def _make_vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=_SIDE_PX, patch_size=_PATCH_PX
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    processor = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": {"height": _SIDE_PX, "width": _SIDE_PX},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _make_tiny(folder: Path) -> None:
    from diffusers import AutoencoderTiny

    AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
        latent_channels=4,
    ).save_pretrained(folder)
