"""A generator that is one file, and a denoiser from a file: the same images as from the folder, as diffusers converts them, or one line."""

import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.load_part import load_part
from featurize.generate.text_to_image import TextToImage
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute, resolve_compute
from tests.support.ldm_checkpoint import write_single_file
from tests.support.tiny_pipelines import library_pipeline, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STEPS = {"steps": 2, "guidance": 1.0}


@pytest.fixture(scope="module")
def compute() -> Compute:
    return resolve_compute("cpu", "float32", half="float16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline("stable-diffusion", tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return write_single_file(folder, folder.parent / "dream.safetensors", layers=1)


def _find(source: str | Path, **given: Any) -> Generator:
    return find_generator(str(source), generator_settings(str(source), STEPS | given), half=False)


def _latents(generator: Generator, compute: Compute) -> tuple[torch.Tensor, torch.Tensor]:
    model = TextToImage(generator, compute)
    with model.text_encoder_on_device():
        embeddings = model.encode_prompts(["a cat"])
    latents = model.denoise(embeddings, [3])
    return latents, model.decode(latents)


def test_a_checkpoint_gives_the_images_of_the_folder_it_was_written_from(folder: Path, checkpoint: Path, compute: Compute) -> None:
    found = _find(checkpoint, generator_config=str(folder))
    assert (found.name, found.folder, found.single_file) == ("dream", folder, checkpoint)
    ours, theirs = (TextToImage(generator, compute).parts for generator in (found, _find(folder)))
    for own, other in (
        (ours.denoiser, theirs.denoiser),
        (ours.vae, theirs.vae),
        *zip(ours.text_encoders.values(), theirs.text_encoders.values(), strict=True),
    ):
        weights = other.state_dict()
        assert own.state_dict().keys() == weights.keys()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in own.state_dict().items())
    # Where a tensor lies in its file decides the last bit of products on the CPU.
    for one, same in zip(_latents(found, compute), _latents(_find(folder), compute), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_xl_gives_both_text_encoders(tmp_path: Path) -> None:
    config = CLIPTextConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=24)
    pooled = 6 * 8 + config.projection_dim
    folder = tiny_pipeline("sdxl", tmp_path / "xl", cross_attention_dim=40, projection_class_embeddings_input_dim=pooled)
    CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder_2")  # diffusers tells the two by their widths
    file = write_single_file(folder, tmp_path / "xl.safetensors", layers=1)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        own, expected = (
            load_part(found, part, torch.float32).state_dict() for found in (_find(file, generator_config=str(folder)), _find(folder))
        )
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], tensor) for name, tensor in expected.items()), part


def test_a_checkpoint_needs_a_configuration_without_weights_alone(folder: Path, checkpoint: Path, compute: Compute, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")))
    assert _latents(_find(checkpoint, generator_config=str(bare)), compute)[0].isfinite().all()


def test_without_a_network_the_configuration_that_is_missing_is_one_line(checkpoint: Path) -> None:
    with pytest.raises(InputError) as error:
        _find(checkpoint)
    line = str(error.value)
    assert "whose configuration is not within reach (stable-diffusion-v1-5/stable-diffusion-v1-5: " in line
    assert (line.count("got "), line.count("("), line.count("--generator-config")) == (1, line.count(")"), 1)
    assert line.endswith("give --generator-config FOLDER, a diffusers folder of that model; it needs no weights")
    assert "\n" not in line


def test_the_fingerprint_follows_the_file_and_not_its_place(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(checkpoint, tmp_path / "elsewhere" / "dream.safetensors"))
    given = {"generator_config": str(folder)}
    assert _find(moved, **given).fingerprint() == _find(checkpoint, **given).fingerprint()
    tensors = load_file(checkpoint)
    name = next(name for name in tensors if name.startswith("first_stage_model."))
    save_file(tensors | {name: tensors[name] + 1}, moved)
    assert _find(moved, **given).fingerprint() != _find(checkpoint, **given).fingerprint()


def test_a_preset_may_have_its_weights_from_a_file(folder: Path, checkpoint: Path) -> None:
    found = _find(f"sd2-base={checkpoint}", generator_config=str(folder), size_px=64)
    assert (found.name, found.settings.scheduler, found.single_file) == ("sd2-base", "ddim", checkpoint)


def test_what_is_no_checkpoint_is_one_line(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    save_file({"unet.to_q.lora.down.weight": torch.zeros(1)}, tmp_path / "style.safetensors")
    alone = folder / "unet" / "diffusion_pytorch_model.safetensors"
    for source, told in {
        tmp_path / "broken.safetensors": r"broken.safetensors, which does not load .*; get it again from where it comes from",
        tmp_path / "old.ckpt": r"old.ckpt, a file that is not .safetensors; expected .*; get the model as .safetensors",
        tmp_path / "style.safetensors": r"weights of a LoRA alone; expected .*; give the base model as --generator, with --lora",
        alone: r"weights of a denoiser alone; expected .*; give the base model as --generator, with --unet",
        tmp_path / "none.safetensors": r"none.safetensors, which is no file; expected a .safetensors file; check the path",
        "nobody/model.safetensors": "which is no file",
    }.items():
        with pytest.raises(InputError, match=told):
            _find(source, generator_config=str(folder))
    with pytest.raises(InputError, match=r"got --generator-config .*, which is no .safetensors file; .* leave out"):
        _find(folder, generator_config=str(folder))


def test_a_checkpoint_of_another_model_is_one_line(folder: Path, checkpoint: Path, compute: Compute, tmp_path: Path) -> None:
    wider = tiny_pipeline("stable-diffusion", tmp_path / "wider", block_out_channels=(32, 64))
    with pytest.raises(InputError, match=r"does not load|has no weights for") as error:
        TextToImage(_find(checkpoint, generator_config=str(wider)), compute)
    assert "give the configuration of this" in str(error.value)


def test_weights_that_the_configuration_has_no_place_for_are_one_line(
    folder: Path, checkpoint: Path, compute: Compute, tmp_path: Path
) -> None:
    more = tmp_path / "more.safetensors"
    save_file(load_file(checkpoint) | {"model.diffusion_model.input_blocks.9.0.op.weight": torch.zeros(7)}, more)
    with pytest.raises(InputError, match=r"has 7 numbers more than"):
        TextToImage(_find(more, generator_config=str(folder)), compute)


@pytest.mark.parametrize("family", ["stable-diffusion", "sdxl", "flux-schnell", "z-image", "cogview4", "pixart-sigma", "kandinsky5"])
def test_a_denoiser_from_a_file_replaces_that_of_the_base(tmp_path: Path, compute: Compute, family: str) -> None:
    base = tiny_pipeline(family, tmp_path / "base")
    part = "unet" if (base / "unet").is_dir() else "transformer"
    kind = getattr(diffusers, type(getattr(library_pipeline(base), part)).__name__)
    torch.manual_seed(1)
    other = kind.from_config(kind.load_config(base / part))
    file = tmp_path / "other.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in other.state_dict().items()}, file)
    for weights in (base / part).glob("*.safetensors"):
        weights.unlink()
    found = _find(base, unet=file)
    model = TextToImage(found, compute)
    assert all(torch.equal(tensor, model.parts.denoiser.state_dict()[name]) for name, tensor in other.state_dict().items())
    assert found.denoiser_path == file


@pytest.mark.parametrize("family", ["kandinsky5", "pixart-sigma", "flux-schnell", "stable-diffusion"])
def test_a_denoiser_from_a_file_is_in_half_precision_what_its_folder_is(tmp_path: Path, family: str) -> None:
    base = tiny_pipeline(family, tmp_path / "base")
    part = "unet" if (base / "unet").is_dir() else "transformer"
    file = Path(shutil.copy(next((base / part).glob("*.safetensors")), tmp_path / "other.safetensors"))
    ours, theirs = (load_part(_find(base, **given), part, torch.bfloat16) for given in ({"unet": file}, {}))
    for kind in ("named_parameters", "named_buffers"):
        own, expected = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
        assert own.keys() == expected.keys()
        assert all(own[name].dtype == tensor.dtype and torch.equal(own[name], tensor) for name, tensor in expected.items())


def test_a_denoiser_in_a_form_that_diffusers_does_not_convert_is_one_line(tmp_path: Path) -> None:
    base = tiny_pipeline("kandinsky5", tmp_path / "base")
    tensors = load_file(next((base / "transformer").glob("*.safetensors")))
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other names than those of diffusers, .*; expected the transformer") as error:
        load_part(_find(base, unet=tmp_path / "other.safetensors"), "transformer", torch.float32)
    assert len(str(error.value)) < 500


def test_a_denoiser_of_another_shape_and_a_lora_are_one_line(folder: Path, compute: Compute, tmp_path: Path) -> None:
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    fewer, more, lora = tmp_path / "fewer.safetensors", tmp_path / "more.safetensors", tmp_path / "lora.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if name != "conv_out.weight"}, fewer)
    save_file(tensors | {"down_blocks.9.weight": torch.zeros(1)}, more)
    save_file({"unet.to_q.lora.down.weight": torch.zeros(1)}, lora)
    for file, told in {fewer: r"no weights for conv_out.weight\)", more: r"no place for down_blocks.9.weight\)"}.items():
        with pytest.raises(InputError, match=rf"{told}; expected the unet that .*; give the denoiser of this model"):
            TextToImage(_find(folder, unet=file), compute)
    with pytest.raises(InputError, match=r"a LoRA; expected a denoiser's weights; give --lora"):
        _find(folder, unet=lora)
    with pytest.raises(InputError, match=r"none.safetensors, which is no file"):
        _find(folder, unet=tmp_path / "none.safetensors")


def test_the_file_of_a_lightning_unet_says_how_it_is_sampled(tmp_path: Path) -> None:
    base = tiny_pipeline("sdxl", tmp_path / "sdxl-base")
    unet = Path(shutil.copy(next((base / "unet").glob("*.safetensors")), tmp_path / "sdxl_lightning_4step_unet.safetensors"))
    settings = generator_settings(str(base), {"unet": unet})
    found = find_generator(str(base), settings, half=False)
    assert (found.settings.steps, found.settings.guidance, found.settings.scheduler) == (4, 0.0, "euler")
    assert found.sampler == {"timestep_spacing": "trailing"}
    preset = find_generator(
        f"sdxl-lightning={base}", generator_settings(f"sdxl-lightning={base}", {"unet": unet, "size_px": 64}), half=False
    )
    assert (preset.settings.steps, preset.sampler, preset.denoiser_path) == (4, {"timestep_spacing": "trailing"}, unet)
