"""Families of text-to-image pipelines: one file each, and one line here."""

import difflib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from featurize.generate.families.family import Family
from lugpi_core.errors import InputError
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
# From this similarity on, of at most 1, a name is a misspelling of another.
_LIKE = 0.8


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
    """Return what helps against a class that does not run here: a name that is like one that does, if it is no class of diffusers."""
    import diffusers

    close = [] if kind in dir(diffusers) else difflib.get_close_matches(kind, FAMILIES, n=1, cutoff=_LIKE)
    return f"did you mean {close[0]!r}? Correct model_index.json" if close else "choose another generator"


def _family_class(folder: Path, index: Mapping[str, Any]) -> type[Family]:
    kind = str(index.get("_class_name") or "")
    if kind not in FAMILIES:
        raise InputError(
            got=f"{folder} with the pipeline {kind}" if kind else f"{folder / 'model_index.json'} without _class_name",
            expected="a text-to-image pipeline that runs here (they are listed under Families in docs/generators.md)",
            do=_advice(kind),
        )
    module, name = FAMILIES[kind]
    family: type[Family] = getattr(import_module(f"featurize.generate.families.{module}"), name)
    return family
