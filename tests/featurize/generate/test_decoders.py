"""Decoders by name: which TAESD fits which generator, what is refused before anything is loaded, and what it makes of latents."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch.nn.functional import avg_pool2d

from featurize.encode.encoders import find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.generate.decoders import DecoderFiles, LatentDecoder, find_decoder, load_decoder, load_tiny_decoder
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.pretrained import embedded_model
from tests.support.tiny_pipelines import library_pipeline, tiny_pipeline

CPU = resolve_compute("cpu", "float32", half="float16")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def demo() -> Generator:
    return find_generator("demo", generator_settings("demo", {}), half=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A TAESD folder to change at will."""
    return Path(shutil.copytree(embedded_model("tiny"), tmp_path / "taesd"))


@pytest.fixture(autouse=True)
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No model of the machine's own hub cache is in reach."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def _found(choice: str, generator: Generator) -> DecoderFiles:
    files = find_decoder(choice, generator)
    assert files is not None
    return files


def _edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    changed = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


def _edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def test_full_is_the_generators_own(demo: Generator) -> None:
    assert find_decoder("full", demo) is None


def test_tiny_is_the_embedded_one_for_the_embedded_generator(demo: Generator) -> None:
    files = _found("tiny", demo)
    assert (files.name, files.folder, files.revision, files.license) == (
        "taesd-demo",
        embedded_model("tiny"),
        None,
        "Apache-2.0",
    )
    assert files.fingerprint() == {"weights": files.weights_hash}


def test_another_folder_named_demo_does_not_get_the_embedded_decoder(demo: Generator, tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(demo, folder=tmp_path)
    with pytest.raises(
        InputError, match=r"got --decoder tiny for demo, of whose latents \(AutoencoderKL of 8 channels, scaled by 0.894788\) there is"
    ):
        find_decoder("tiny", elsewhere)


def _generator(family: str, folder: Path) -> Generator:
    name = str(tiny_pipeline(family, folder))
    return find_generator(name, generator_settings(name, {"size_px": 64, "steps": 2}), half=False)


# What each family of latents is decoded by; other autoencoders have no tiny one in diffusers.
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("family", "repository"),
    [
        ("stable-diffusion", "taesd"),
        ("lcm", "taesd"),
        ("sdxl", "taesdxl"),
        ("pixart-sigma", "taesdxl"),
        ("hunyuan-dit", "taesdxl"),
        ("auraflow", "taesdxl"),
        ("sd3", "taesd3"),
        ("flux-dev", "taef1"),
        ("z-image", "taef1"),
        ("chroma", "taef1"),
        ("lumina2", "taef1"),
    ],
)
def test_tiny_is_the_one_for_the_generators_latents(tmp_path: Path, empty_hub_cache: Path, family: str, repository: str) -> None:
    generator = _generator(family, tmp_path / "generator")
    with pytest.raises(InputError, match=rf"got --decoder tiny, which is madebyollin/{repository} \(.*give its folder") as error:
        find_decoder("tiny", generator)
    assert "\n" not in str(error.value)
    cached = empty_hub_cache / f"models--madebyollin--{repository}"
    _write_tiny(cached / "snapshots" / COMMIT, generator)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    files = _found("tiny", generator)
    assert (files.name, files.folder, files.revision, files.license) == (repository, cached / "snapshots" / COMMIT, COMMIT, "MIT")
    same = _found(f"tiny={files.folder}", generator)
    assert same.fingerprint() == files.fingerprint()  # a run that began with the hub's files goes on with a copy of them


@pytest.mark.parametrize("family", ["sana", "cogview4", "qwen-image", "flux2-klein"])
def test_latents_without_a_tiny_decoder_are_refused(tmp_path: Path, family: str) -> None:
    with pytest.raises(
        InputError, match=r"there is none; expected latents of Stable Diffusion 1 and 2, XL, 3, FLUX.1; use --decoder full, or tiny=FOLDER"
    ):
        find_decoder("tiny", _generator(family, tmp_path / "generator"))


def test_latents_that_are_normalised_by_channel_are_no_others(tmp_path: Path) -> None:
    folder = tiny_pipeline("sdxl", tmp_path / "generator")
    _edit_json(folder / "vae" / "config.json", latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    name = str(folder)
    with pytest.raises(InputError, match="there is none"):
        find_decoder("tiny", find_generator(name, generator_settings(name, {"size_px": 64}), half=False))


def _write_tiny(folder: Path, generator: Generator) -> diffusers.AutoencoderTiny:
    """Write an AutoencoderTiny of random weights for the latents of a generator."""
    channels, side, _ = generator.latent_shape
    blocks = (generator.size_px // side).bit_length()
    widths = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8,) * blocks)
    counts = dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1,) * blocks)
    decoder = diffusers.AutoencoderTiny(latent_channels=channels, **widths, **counts).eval()
    decoder.save_pretrained(folder)
    return decoder


@pytest.mark.filterwarnings("ignore:.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("family", ["stable-diffusion", "sdxl", "sd3", "z-image", "lumina2", "auraflow"])
def test_a_tiny_decoder_gives_the_image_of_the_librarys_pipeline_with_it(tmp_path: Path, family: str) -> None:
    generator = _generator(family, tmp_path / "generator")
    tiny = _write_tiny(tmp_path / "tiny", generator)
    models = TextToImage(
        generator, resolve_compute("cpu", "float32", half="float16"), decoder=_found(f"tiny={tmp_path / 'tiny'}", generator)
    )
    with models.text_encoder_on_device():
        embeddings = models.encode_prompts(["a red dog"])
    images = models.decode(models.denoise(embeddings, [1]))
    pipeline = library_pipeline(generator.folder)
    pipeline.vae = tiny
    how = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": generator.settings.guidance, "output_type": "pt"}
    theirs = pipeline("a red dog", generator=torch.Generator().manual_seed(1), **how)[0]
    assert (images - theirs).abs().max() <= 1e-5


def test_a_folder_of_the_users_is_taken(demo: Generator, folder: Path) -> None:
    files = _found(f"tiny={folder}", demo)
    assert (files.name, files.folder, files.revision, files.license) == ("tiny", folder, None, "see the model's own card")
    assert files.weights_hash == _found("tiny", demo).weights_hash


@pytest.mark.parametrize(
    ("choice", "do"),
    [
        ("tinny", "did you mean 'tiny'?"),
        ("ful", "did you mean 'full'?"),
        ("zzz", "choose one of full, half, tiny"),
        ("", "choose one of full, half, tiny"),
        ("full=folder", "did you mean 'full'?"),
        ("tiny=", "check the folder's name"),
        ("tiny=nowhere", "check the folder's name"),
        ("tiny=madebyollin/taesd", "check the folder's name"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(demo: Generator, choice: str, do: str) -> None:
    with pytest.raises(InputError) as error:
        find_decoder(choice, demo)
    assert (
        str(error.value).split()
        == f"got --decoder {choice}; expected full, half, tiny, or tiny=FOLDER with an existing folder; {do}".split()
    )


def test_a_model_of_another_class_is_refused(demo: Generator) -> None:
    with pytest.raises(InputError, match=r"vae \(AutoencoderKL\); expected AutoencoderTiny; choose another decoder"):
        find_decoder(f"tiny={embedded_model('generator') / 'vae'}", demo)
    with pytest.raises(InputError, match=r"vit-demo \(no model of diffusers\); expected AutoencoderTiny"):
        find_decoder(f"tiny={embedded_model('vit-demo')}", demo)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"latent_channels": 16},
            r"taesd, a decoder for latents of 16 channels; expected latents of 8 channels, as the generator demo has;",
        ),
        ({"num_decoder_blocks": [1, 1, 1]}, r"a decoder for images of 32 px; expected images of 64 px"),
        ({"upsampling_scaling_factor": 4}, r"a decoder for images of 512 px; expected images of 64 px"),
        ({"out_channels": 4}, r"a decoder for images of 4 colours; expected images of 3 colours"),
        ({"num_decoder_blocks": 3}, r"whose configuration lacks something \(TypeError"),
    ],
)
def test_a_decoder_that_does_not_fit_the_generator_is_refused(demo: Generator, folder: Path, changes: dict[str, Any], message: str) -> None:
    _edit_json(folder / "config.json", **changes)
    with pytest.raises(InputError, match=message):
        find_decoder(f"tiny={folder}", demo)


def test_what_a_configuration_leaves_out_is_what_diffusers_takes(demo: Generator, folder: Path) -> None:
    silent = ("num_decoder_blocks", "upsampling_scaling_factor", "out_channels")
    _edit_json(folder / "config.json", **dict.fromkeys(silent))
    assert find_decoder(f"tiny={folder}", demo) is not None
    _edit_json(folder / "config.json", latent_channels=None)
    with pytest.raises(InputError, match="a decoder for latents of 4 channels; expected latents of 8 channels"):
        find_decoder(f"tiny={folder}", demo)
    defaults = diffusers.AutoencoderTiny.from_config({}).config
    assert (
        defaults["latent_channels"],
        len(defaults["num_decoder_blocks"]),
        defaults["upsampling_scaling_factor"],
        defaults["out_channels"],
    ) == (4, 4, 2, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"got no config\.json in .*taesd; expected a model's folder"),
        ("config.json", b"{", r"config\.json, which is not JSON"),
        ("config.json", b"[]", r"config\.json, a JSON list; expected a JSON object"),
        ("config.json", b"{}", r"got .*taesd \(no model of diffusers\); expected AutoencoderTiny"),
        (WEIGHTS, None, r"taesd without diffusion_pytorch_model\.safetensors; expected weights as safetensors"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(demo: Generator, folder: Path, name: str, content: bytes | None, message: str) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(InputError, match=message):
        find_decoder(f"tiny={folder}", demo)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_the_fingerprint_changes_with_the_files_that_are_loaded(demo: Generator, folder: Path, name: str) -> None:
    before = _found(f"tiny={folder}", demo).fingerprint()
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    assert _found(f"tiny={folder}", demo).fingerprint() != before


def test_other_files_of_the_repository_do_not_change_the_fingerprint(demo: Generator, folder: Path) -> None:
    before = _found(f"tiny={folder}", demo).fingerprint()
    for name in ("taesd_decoder.safetensors", "diffusion_pytorch_model.bin", "README.md", "other.json"):
        (folder / name).write_bytes(b"something else")
    assert _found(f"tiny={folder}", demo).fingerprint() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_loaded_in_the_dtype_to_be_used_and_not_trained(demo: Generator, dtype: torch.dtype) -> None:
    decoder = load_tiny_decoder(_found("tiny", demo), dtype)
    assert isinstance(decoder, diffusers.AutoencoderTiny)
    assert decoder.dtype == dtype
    assert {(value.dtype, value.requires_grad, value.is_meta) for value in decoder.parameters()} == {(dtype, False, False)}
    assert not any(module.training for module in decoder.modules())
    # What a decoding says of the generator's own decoder holds for this one too.
    assert (decoder.config.scaling_factor, decoder.config.get("latents_mean"), decoder.config.force_upcast) == (1.0, None, False)


@torch.inference_mode()
def test_it_decodes_unscaled_latents_to_the_generators_size(demo: Generator) -> None:
    decoder = load_tiny_decoder(_found("tiny", demo), torch.float32)
    latents = torch.randn(3, *demo.latent_shape, generator=torch.Generator().manual_seed(0))
    images = decoder.decode(latents, return_dict=False)[0]
    assert images.shape == (3, 3, 64, 64)
    bounded = torch.tanh(latents / 3) * 3  # the network's own words: latents softly clamped to ±3, pixels in [0, 1]
    assert torch.equal(images, decoder.decoder.layers(bounded) * 2 - 1)
    assert (images[0] - images[1]).abs().max() > 1e-3


@torch.inference_mode()
def test_an_infinite_latent_gives_a_finite_image_and_nan_does_not(demo: Generator) -> None:
    decoder = load_tiny_decoder(_found("tiny", demo), torch.float32)
    latents = torch.zeros(2, *demo.latent_shape)
    latents[0, 0, 0, 0], latents[1, 0, 0, 0] = torch.inf, torch.nan
    infinite, no_number = decoder.decode(latents, return_dict=False)[0]
    assert infinite.isfinite().all()
    assert no_number.isnan().any()


@torch.inference_mode()
def test_it_decodes_like_a_pipeline_with_this_decoder(demo: Generator) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(demo.folder, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    files = _found("tiny", demo)
    pipeline.vae = diffusers.AutoencoderTiny.from_pretrained(files.folder, dtype=torch.float32)
    noise = torch.randn(1, *demo.latent_shape, generator=torch.Generator().manual_seed(0))
    how = {"latents": noise, "num_inference_steps": 2, "guidance_scale": 1.0}
    latents = pipeline(["a cat"], output_type="latent", **how).images
    expected = pipeline(["a cat"], output_type="pt", **how).images
    image = load_tiny_decoder(files, torch.float32).decode(latents, return_dict=False)[0]
    assert (image.div(2).add(0.5).clamp(0, 1) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop("decoder.layers.0.weight"), r"no weights for decoder\.layers\.0\.weight"),
        (
            lambda weights: weights.update({"decoder.layers.0.weight": torch.zeros(8, 4, 3, 3)}),
            r"decoder\.layers\.0\.weight expected shape",
        ),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    demo: Generator, folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    _edit_weights(folder, edit)
    files = _found(f"tiny={folder}", demo)
    with pytest.raises(InputError, match=rf"got .*taesd, which does not load \(.*{message}.*expected a whole AutoencoderTiny folder"):
        load_tiny_decoder(files, torch.float32)


def test_weights_that_are_cut_off_or_gone_are_refused(demo: Generator, folder: Path) -> None:
    files = _found(f"tiny={folder}", demo)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])
    with pytest.raises(InputError, match=r"taesd, which does not load \("):
        load_tiny_decoder(files, torch.float32)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"taesd, which does not load \("):
        load_tiny_decoder(files, torch.float32)


def test_a_configuration_that_builds_no_model_is_refused(demo: Generator, folder: Path) -> None:
    _edit_json(folder / "config.json", act_fn="nope")
    with pytest.raises(InputError, match=r"taesd, which does not load \(activation function nope not found"):
        load_tiny_decoder(_found(f"tiny={folder}", demo), torch.float32)


@torch.inference_mode()
def test_the_averaged_upsampling_is_the_mean_of_the_librarys(demo: Generator) -> None:
    whole, half = (load_decoder(demo, files, torch.float32).decoder.up_blocks[-2] for files in (None, _found("half", demo)))
    cells = torch.randn(2, whole.upsamplers[0].channels, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = avg_pool2d(whole.upsamplers[0](cells), 2)  # zeros are beyond the border in both
    torch.testing.assert_close(half.upsamplers[0](cells), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["demo", "demo-flow"])
def test_a_halved_image_is_the_whole_one_at_half_the_side(name: str) -> None:
    generator = find_generator(name, generator_settings(name, {}), half=False)
    models = TextToImage(generator, CPU)
    with models.text_encoder_on_device():
        latents = models.denoise(models.encode_prompts(["a red apple", "a sleeping cat", "an old house", "a fast train"]), range(4))
    whole, half = (LatentDecoder(generator, CPU, decoder=find_decoder(choice, generator)) for choice in ("full", "half"))
    images = {"whole": whole.decode(latents), "half": half.decode(latents), "smaller latents": whole.decode(avg_pool2d(latents, 2))}
    assert images["half"].shape == images["smaller latents"].shape == (4, 3, 32, 32)
    assert (images["half"] - avg_pool2d(images["whole"], 2)).abs().mean() < 0.03
    # docs/generators.md says these figures.
    encoder = ImageEncoder(find_encoder("clip-demo", 32), CPU)
    tokens = {each: encoder.encode(pixels).float() for each, pixels in images.items()}
    near, far = (
        torch.nn.functional.cosine_similarity(tokens["whole"], tokens[each], dim=-1).mean() for each in ("half", "smaller latents")
    )
    assert near > 0.99
    assert far < 0.9


@pytest.mark.parametrize(("family", "class_name"), [("sana", "AutoencoderDC"), ("qwen-image", "AutoencoderKLQwenImage")])
def test_a_decoder_without_such_an_upsampling_is_not_halved(tmp_path: Path, family: str, class_name: str) -> None:
    with pytest.raises(InputError, match=rf"whose decoder is of {class_name}; expected one of AutoencoderKL or AutoencoderKLFlux2 that"):
        find_decoder("half", _generator(family, tmp_path / "generator"))


def test_a_decoder_that_upsamples_nothing_is_not_halved(demo: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.family.configs, "vae", {**demo.family.configs["vae"], "up_block_types": ["UpDecoderBlock2D"]})
    with pytest.raises(InputError, match="got --decoder half for demo, whose decoder is of AutoencoderKL; expected one of"):
        find_decoder("half", demo)


@pytest.mark.parametrize("family", ["flux2-klein", "pixart-sigma"])
def test_other_families_decode_at_half_the_side_too(tmp_path: Path, family: str) -> None:
    generator = _generator(family, tmp_path / "generator")
    images = LatentDecoder(generator, CPU, decoder=_found("half", generator)).decode(torch.zeros(1, *generator.latent_shape))
    assert images.shape == (1, 3, generator.size_px // 2, generator.size_px // 2)
