"""Families of text-to-image pipelines: one file each, and one line here."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from featurize.generate.families.family import Family
from lugpi_core.errors import InputError, nearest
from lugpi_core.runtime.pretrained import read_config

# The class of a pipeline, as model_index.json calls it → the module and the class of its family.
FAMILIES: Mapping[str, tuple[str, str]] = {
    "StableDiffusionPipeline": ("unet", "StableDiffusion"),
    "StableDiffusionXLPipeline": ("unet", "StableDiffusionXL"),
    "LatentConsistencyModelPipeline": ("unet", "LatentConsistency"),
    "FluxPipeline": ("flux", "Flux"),
    "Flux2KleinPipeline": ("flux2", "Flux2Klein"),
    "Flux2Pipeline": ("flux2", "Flux2"),
    "QwenImagePipeline": ("qwen", "QwenImage"),
    "Lumina2Pipeline": ("lumina2", "Lumina2"),
    "ChromaPipeline": ("chroma", "Chroma"),
    "OvisImagePipeline": ("ovis", "OvisImage"),
    "LongCatImagePipeline": ("longcat", "LongCatImage"),
    "ErnieImagePipeline": ("ernie", "ErnieImage"),
    "AuraFlowPipeline": ("aura_flow", "AuraFlow"),
    "CogView4Pipeline": ("cogview4", "CogView4"),
    "HunyuanDiTPipeline": ("hunyuan_dit", "HunyuanDiT"),
    "Kandinsky5T2IPipeline": ("kandinsky5", "Kandinsky5"),
    "PRXPipeline": ("prx", "Prx"),
    "PixArtAlphaPipeline": ("pixart", "PixArtAlpha"),
    "PixArtSigmaPipeline": ("pixart", "PixArtSigma"),
    "SanaPipeline": ("sana", "Sana"),
    "SanaSprintPipeline": ("sana", "SanaSprint"),
    "StableDiffusion3Pipeline": ("sd3", "StableDiffusion3"),
    "ZImagePipeline": ("z_image", "ZImage"),
}


def family_of(folder: Path, index: Mapping[str, Any], replaced: Mapping[str, Path] | None = None) -> Family:
    """Return the family of a folder of diffusers, from its configurations alone. Those that are missing are missed where they are needed.

    Args:
        folder: of diffusers.
        index: its ``model_index.json``.
        replaced: folders of parts that come from elsewhere, by part.

    Raises:
        InputError: no family has such pipelines, or a configuration cannot be read.
    """
    family = _family_class(folder, index)
    tokenizers = [tokenizer for tokenizer, _ in family.text_pairs]
    files = {
        **dict.fromkeys(family.part_classes, "config.json"),
        **dict.fromkeys(tokenizers, "tokenizer_config.json"),
        "scheduler": "scheduler_config.json",
    }
    paths = {part: (replaced or {}).get(part, folder / part) / file for part, file in files.items()}
    return family(folder, index, {part: read_config(path) for part, path in paths.items() if path.is_file()})


def denoiser_of(folder: Path, index: Mapping[str, Any]) -> str:
    """Return the name of a pipeline's denoiser, ``unet`` or ``transformer``. Arguments and errors are those of ``family_of``."""
    return _family_class(folder, index).denoiser


def _advice(kind: str) -> str:
    close = nearest(kind, FAMILIES)
    return close if close.startswith("did you mean") else "choose another generator"


def _family_class(folder: Path, index: Mapping[str, Any]) -> type[Family]:
    kind = str(index.get("_class_name") or "")
    if kind not in FAMILIES:
        raise InputError(got=f"{folder} ({kind})", expected=f"one of {', '.join(FAMILIES)}", do=_advice(kind))
    module, name = FAMILIES[kind]
    family: type[Family] = getattr(import_module(f"featurize.generate.families.{module}"), name)
    return family
