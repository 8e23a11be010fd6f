"""What the files of a generator's folder say before a weight is loaded: whether its models are all there, and fit one another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import read_config, require_whole_weights

_PAIRS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))


def text_models(index: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names of a pipeline's tokenizers and text encoders, from its ``model_index.json``. Stable Diffusion XL has two."""
    return [pair for pair in _PAIRS if (index.get(pair[1]) or [None])[0]]


def check_folder(folder: Path, index: Mapping[str, Any]) -> None:
    """Check the models of a Stable Diffusion folder against one another.

    Args:
        folder: of diffusers.
        index: its ``model_index.json``.

    Raises:
        InputError: a model is missing, has an adapter beside it, is quantized, or does not fit the others.
    """
    texts = text_models(index)
    needed_text = "text_encoder_2" if index["_class_name"] == "StableDiffusionXLPipeline" else "text_encoder"
    if needed_text not in [encoder for _, encoder in texts]:
        raise InputError(
            got=f"{folder}, whose model_index.json names no {needed_text}",
            expected="a pipeline that reads prompts",
            do="give the whole base model",
        )
    models = ("unet", "vae", *(encoder for _, encoder in texts))
    if missing := [name for name in (*models, "scheduler", *(tokenizer for tokenizer, _ in texts)) if not (folder / name).is_dir()]:
        raise InputError(
            got=f"{folder} without {' and '.join(f'{name}/' for name in missing)}",
            expected="a whole diffusers folder",
            do="get what is missing from where it comes from, or save the pipeline again with save_pretrained()",
        )
    configs = {name: read_config(folder / name / "config.json") for name in models}
    for name, config in configs.items():
        require_whole_weights(str(folder / name), folder / name, config)
    _check_latents(folder, configs["unet"], configs["vae"])
    _check_text_width(folder, configs["unet"], [configs[encoder].get("hidden_size") for _, encoder in texts])


def _check_latents(folder: Path, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    read, written, decoded = unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)
    if not read == written == decoded:
        kind = ", as for inpainting" if read == 2 * decoded + 1 else ""
        raise InputError(
            got=f"{folder}, whose unet reads latents of {read} channels{kind}, and writes {written}, and whose vae decodes {decoded}",
            expected="one number of channels",
            do="choose a text-to-image model",
        )
    factor = vae.get("scaling_factor", 1.0)
    if not isinstance(factor, (int, float)) or not factor > 0:
        raise InputError(
            got=f"{folder / 'vae' / 'config.json'} with the scaling_factor {factor}",
            expected="a positive number",
            do="set it to the one the model was trained with (0.18215 for Stable Diffusion 1 and 2, 0.13025 for XL)",
        )


def _check_text_width(folder: Path, unet: Mapping[str, Any], text_widths: list[Any]) -> None:
    """Check that the UNet reads embeddings of the width that the text encoders give together."""
    is_projected = unet.get("encoder_hid_dim") is not None and unet.get("encoder_hid_dim_type") in (None, "text_proj")
    name = "encoder_hid_dim" if is_projected else "cross_attention_dim"
    width = unet.get(name)
    if isinstance(width, int) and all(isinstance(one, int) for one in text_widths) and width != sum(text_widths):
        raise InputError(
            got=f"{folder}, whose unet has the {name} {width}, and whose text encoder gives {' + '.join(map(str, text_widths))}",
            expected="one width",
            do="restore unet/ and text_encoder/ from one model",
        )
