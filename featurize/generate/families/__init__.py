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
    "StableDiffusionPipeline": ("unet", "StableDiffusion"),
    "StableDiffusionXLPipeline": ("unet", "StableDiffusionXL"),
    "LatentConsistencyModelPipeline": ("unet", "LatentConsistency"),
}


def family_of(folder: Path, index: Mapping[str, Any]) -> Family:
    """Return the family of a folder of diffusers, from its configurations alone. Those that are missing are missed where they are needed.

    Args:
        folder: of diffusers.
        index: its ``model_index.json``.

    Raises:
        InputError: no family has such pipelines, or a configuration cannot be read.
    """
    kind = str(index.get("_class_name") or "")
    if kind not in FAMILIES:
        raise InputError(got=f"{folder} ({kind})", expected=f"one of {', '.join(FAMILIES)}", do="choose another generator")
    module, name = FAMILIES[kind]
    family: type[Family] = getattr(import_module(f"featurize.generate.families.{module}"), name)
    tokenizers = [tokenizer for tokenizer, _ in family.text_pairs]
    files = {
        **dict.fromkeys(family.part_classes, "config.json"),
        **dict.fromkeys(tokenizers, "tokenizer_config.json"),
        "scheduler": "scheduler_config.json",
    }
    paths = {part: folder / part / file for part, file in files.items()}
    return family(folder, index, {part: read_config(path) for part, path in paths.items() if path.is_file()})
