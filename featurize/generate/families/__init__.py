"""Families of text-to-image pipelines: one file each, and one line here."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from featurize.generate.families.family import Family
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import read_config

# The class of a pipeline, as model_index.json calls it → the module and the class of its family.
FAMILIES: Mapping[str, tuple[str, str]] = {
    "FluxPipeline": ("flux", "Flux"),
    "Flux2KleinPipeline": ("flux2", "Flux2Klein"),
    "Flux2Pipeline": ("flux2", "Flux2"),
    "QwenImagePipeline": ("qwen", "QwenImage"),
    "Lumina2Pipeline": ("lumina2", "Lumina2"),
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


def family_of(folder: Path, index: Mapping[str, Any]) -> Family:
    """Return the family of a folder of diffusers, from its configurations alone.

    Args:
        folder: of diffusers.
        index: its ``model_index.json``.

    Raises:
        InputError: no family has such pipelines, or this folder's configurations do not run.
    """
    kind = str(index.get("_class_name"))
    if kind not in FAMILIES:
        raise InputError(got=f"{folder} ({kind})", expected=" or ".join(FAMILIES), do="choose another generator")
    module, name = FAMILIES[kind]
    family: type[Family] = getattr(import_module(f"featurize.generate.families.{module}"), name)
    return family(folder, index, configs_in(folder, index))


def configs_in(folder: Path, index: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the configurations of a folder, by part: of models, tokenizers and the scheduler."""
    files = ("config.json", "tokenizer_config.json", "scheduler_config.json")
    found = {part: [folder / part / name for name in files if (folder / part / name).is_file()] for part in index}
    return {part: read_config(paths[0]) for part, paths in found.items() if paths}
