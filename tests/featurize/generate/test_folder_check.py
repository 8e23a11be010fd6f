"""Folders of a generator whose parts are missing or do not fit one another: one line that names the part, before a weight is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from featurize.generate.generators import find_generator, generator_settings
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import embedded_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Stable Diffusion folder to change at will."""
    return Path(shutil.copytree(embedded_model("generator"), tmp_path / "sd"))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_generator(str(folder), generator_settings(str(folder), {}), half=False)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_missing_folder_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    _refused(folder, f"got .*sd without {part}/; expected a whole diffusers folder; get what is missing")


def test_the_second_tokenizer_of_xl_is_missed(folder: Path) -> None:
    shutil.copytree(folder / "text_encoder", folder / "text_encoder_2")
    index = {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    _edit(folder / "model_index.json", **index)
    _refused(folder, "sd without tokenizer_2/")


@pytest.mark.parametrize("pipeline", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_a_pipeline_that_reads_no_prompt_is_refused(folder: Path, pipeline: str) -> None:
    _edit(folder / "model_index.json", _class_name=pipeline, text_encoder=[None, None], tokenizer=[None, None])
    _refused(folder, "names no text_encoder.*; give the whole base model")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"in_channels": 17}, "unet reads latents of 17 channels, as for inpainting, and writes 8, and whose vae decodes 8"),
        ("unet", {"out_channels": 16}, "writes 16, and whose vae decodes 8; expected one number"),
        ("vae", {"latent_channels": 4}, "writes 8, and whose vae decodes 4"),
        ("vae", {"scaling_factor": None}, "vae/config.json with the scaling_factor None; expected a positive number"),
        ("unet", {"cross_attention_dim": 48}, "unet has the cross_attention_dim 48, and whose text encoder gives 160"),
        ("unet", {"encoder_hid_dim": 48}, "unet has the encoder_hid_dim 48"),
        ("text_encoder", {"hidden_size": 48}, "whose text encoder gives 48"),
        ("unet", {"quantization_config": {"quant_method": "bitsandbytes"}}, "sd/unet, whose weights are quantized"),
    ],
)
def test_parts_that_do_not_fit_one_another_are_refused(folder: Path, part: str, changes: dict[str, Any], message: str) -> None:
    _edit(folder / part / "config.json", **changes)
    _refused(folder, message)


@pytest.mark.parametrize("file", ["unet/adapter_config.json", "text_encoder/adapter_model.safetensors", "vae/adapter_model.bin"])
def test_an_adapter_beside_the_weights_is_refused(folder: Path, file: str) -> None:
    (folder / file).write_text("{}")
    _refused(folder, r"with an adapter beside its weights \(adapter_.*; merge it with peft's merge_and_unload")
