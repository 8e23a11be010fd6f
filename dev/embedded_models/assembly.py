"""Writes the trained models as folders for diffusers, open_clip and transformers: safetensors in half precision."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dev.embedded_models import vision
from dev.embedded_models.augmentation import SIDE_PX
from dev.embedded_models.recipe import Recipe
from lugpi_core.files import whole_folder


def assemble(recipe: Recipe, folder: Path) -> Path:
    """Write the models of a recipe, training those that are not trained yet; return the folder."""
    from lugpi_core.runtime.libraries import prepare_libraries

    prepare_libraries()
    with whole_folder(folder) as partial:
        _write_generator(recipe, partial / "generator")
        write_flow(recipe, partial / "generator-flow")
        recipe.tiny().half().to(memory_format=torch.contiguous_format).save_pretrained(partial / "tiny")
        _write_clip(recipe, partial / "clip-demo")
        _write_vit(recipe, partial / "vit-demo")
        recipe.text().distilbert.half().save_pretrained(partial / "text")
        recipe.text_tokenizer().save_pretrained(partial / "text")
    return folder


def _write_generator(recipe: Recipe, folder: Path) -> None:
    pipeline = recipe.pipeline()
    _write_pipeline(pipeline, (pipeline.vae, pipeline.unet), folder)


def write_flow(recipe: Recipe, folder: Path) -> None:
    """Write the second generator."""
    from transformers import T5GemmaConfig

    pipeline = recipe.flow_pipeline()
    _write_pipeline(pipeline, (pipeline.vae, pipeline.transformer, pipeline.text_encoder), folder)
    # As the authors of PRX save it, inside the configuration of a whole T5Gemma: diffusers 0.42.1 reads no other form, its own included
    # (pipelines/prx/__init__.py takes the default sizes then).
    encoder = pipeline.text_encoder.config.to_dict()
    T5GemmaConfig(encoder=encoder, decoder=encoder, dtype="float16").save_pretrained(folder / "text_encoder")


def _write_pipeline(pipeline: Any, parts: Sequence[Any], folder: Path) -> None:
    for part in parts:
        part.to(memory_format=torch.contiguous_format)  # required by safetensors
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)


def _write_clip(recipe: Recipe, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    weights = {name: value.half().contiguous() for name, value in recipe.clip_drawn().state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    preprocess = {"mean": vision.MEAN, "std": vision.STD, "interpolation": "bicubic"}
    config = {"model_cfg": vision.clip_config(len(recipe.tokenizer())), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    recipe.tokenizer().save_pretrained(folder)


def _write_vit(recipe: Recipe, folder: Path) -> None:
    classifier: Any = recipe.vit_drawn()
    classifier.model.half().save_pretrained(folder)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    processor = {"image_mean": vision.MEAN, "image_std": vision.STD, "resample": 3, "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
