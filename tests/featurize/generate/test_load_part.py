"""Parts of a generator are whole and take all of their file, or are refused: neither library says it aloud."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.parts import load_parts
from lugpi_core.errors import InputError
from tests.support.tiny_pipelines import tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
FAMILIES = {"stable-diffusion": "unet", "z-image": "transformer", "sana": "transformer"}


def _load(folder: Path) -> None:
    generator = find_generator(str(folder), generator_settings(str(folder), {"steps": 2, "guidance": 1.0}), half=False)
    load_parts(generator, torch.float32, None, torch.device("cpu"))


def _weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["denoiser", "vae", "text_encoder"])
def test_a_weight_that_is_missing_is_one_line(tmp_path: Path, family: str, part: str) -> None:
    folder = tiny_pipeline(family, tmp_path / "model")
    name = FAMILIES[family] if part == "denoiser" else part
    tensors = load_file(_weights(folder, name))
    gone = sorted(key for key in tensors if "norm" in key)[-1]
    save_file({key: tensor for key, tensor in tensors.items() if key != gone}, _weights(folder, name), {"format": "pt"})
    with pytest.raises(InputError, match=rf"{name}, which does not load \(no weights for [\w.]+\)") as error:
        _load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["denoiser", "vae"])
def test_a_weight_without_a_place_is_one_line(tmp_path: Path, family: str, part: str) -> None:
    folder = tiny_pipeline(family, tmp_path / "model")
    name = FAMILIES[family] if part == "denoiser" else part
    tensors = load_file(_weights(folder, name))
    save_file(tensors | {"blocks.99.weight": torch.zeros(1)}, _weights(folder, name), {"format": "pt"})
    with pytest.raises(InputError, match=rf"{name}, which does not load \(its configuration has no place for blocks.99.weight"):
        _load(folder)


def test_a_text_encoder_with_fewer_layers_than_its_file_is_one_line(tmp_path: Path) -> None:
    folder = tiny_pipeline("stable-diffusion", tmp_path / "model")
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 1}))
    with pytest.raises(InputError, match=r"text_encoder, which does not load \(its configuration has no place for .*layers\.1"):
        _load(folder)


def test_what_older_versions_saved_beside_a_text_encoders_weights_is_read_as_before(tmp_path: Path) -> None:
    folder = tiny_pipeline("stable-diffusion", tmp_path / "model")
    tensors = load_file(_weights(folder, "text_encoder"))
    old = {"text_model.embeddings.position_ids": torch.arange(77)[None], "text_projection.weight": torch.zeros(2, 2)}
    save_file(tensors | old, _weights(folder, "text_encoder"), {"format": "pt"})
    _load(folder)
