"""What a folder without a preset says about steps and guidance, and which of its weight files are read."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.schedulers import load_scheduler
from featurize.generate.text_to_image import TextToImage
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.runtime.pretrained import embedded_model
from tests.support.tiny_pipelines import tiny_pipeline

EPSILON = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}  # the embedded generator predicts v
UNET, TEXT = "unet/diffusion_pytorch_model", "text_encoder/model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Stable Diffusion folder to change at will."""
    return Path(shutil.copytree(embedded_model("generator"), tmp_path / "sd"))


@pytest.fixture(scope="module")
def compute() -> Compute:
    return resolve_compute("cpu", "float32", half="float16")


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _scheduler(folder: Path, kind: str, **settings: Any) -> None:
    _edit(folder / "scheduler" / "scheduler_config.json", _class_name=kind, **settings)
    _edit(folder / "model_index.json", scheduler=["diffusers", kind])


def _find(source: Path, *, half: bool = False, **given: Any) -> Generator:
    return find_generator(str(source), generator_settings(str(source), given), half=half)


def _taken(generator: Generator) -> tuple[int, float, str]:
    return generator.settings.steps, generator.settings.guidance, generator.settings_from


def test_an_ordinary_folder_keeps_the_defaults_of_diffusers_whatever_its_card_says(folder: Path) -> None:
    (folder / "README.md").write_text("pipe(prompt, num_inference_steps=25, guidance_scale=5.0)")
    assert _taken(_find(folder)) == (50, 7.5, "steps and guidance default")


@pytest.mark.parametrize(
    ("kind", "takes_guidance", "expected"),
    [
        ("LCMScheduler", False, (4, 1.0, "steps and guidance of its LCMScheduler")),
        ("LCMScheduler", True, (4, 8.5, "steps and guidance of its LCMScheduler")),
        ("TCDScheduler", False, (4, 0.0, "steps and guidance of its TCDScheduler")),
    ],
)
def test_steps_and_guidance_follow_a_scheduler_of_few_steps(
    folder: Path, kind: str, takes_guidance: bool, expected: tuple[int, float, str]
) -> None:
    _scheduler(folder, kind)
    if takes_guidance:
        _edit(folder / "unet" / "config.json", time_cond_proj_dim=32)
    assert _taken(_find(folder)) == expected


def test_the_card_of_a_turbo_model_is_followed(folder: Path) -> None:
    _scheduler(folder, "EulerAncestralDiscreteScheduler", timestep_spacing="trailing", **EPSILON)
    (folder / "README.md").write_text("pipe(prompt=prompt, num_inference_steps=1, guidance_scale=0.0).images[0]\n" * 2)
    assert _taken(_find(folder)) == (1, 0.0, "steps and guidance of its card")


def _named_turbo(folder: Path) -> Path:
    return folder.rename(folder.with_name("my-SDXL-Turbo"))


def _from_hyper(folder: Path) -> Path:
    _edit(folder / "model_index.json", _name_or_path="ByteDance/Hyper-SD")
    return folder


def _trailing(folder: Path) -> Path:
    _scheduler(folder, "EulerDiscreteScheduler", timestep_spacing="trailing", **EPSILON)
    return folder


def _card_of_several(folder: Path) -> Path:
    (folder / "README.md").write_text("num_inference_steps=1, guidance_scale=0 … num_inference_steps=4, guidance_scale=0")
    return _trailing(folder)


@pytest.mark.parametrize(
    ("change", "sign", "flags"),
    [
        (_named_turbo, "it is called my-SDXL-Turbo", "--steps and --guidance"),
        (_from_hyper, "it comes from Hyper-SD", "--steps and --guidance"),
        (_trailing, "its scheduler has trailing steps", "--steps and --guidance"),
        (_card_of_several, "its scheduler has trailing steps", "--steps as"),
    ],
)
def test_a_model_of_few_steps_that_does_not_say_how_many_is_told(
    folder: Path, change: Callable[[Path], Path], sign: str, flags: str
) -> None:
    folder = change(folder)
    with pytest.warns(UserWarning, match=rf"seems to be distilled to few steps \({sign}\), but does not say how many: .*give {flags}"):
        _find(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _taken(_find(folder, steps=2, guidance=0.0)) == (2, 0.0, "")


def test_the_number_of_steps_in_a_name_is_taken(folder: Path) -> None:
    named = folder.rename(folder.with_name("sdxl_lightning_4step"))
    assert _taken(_find(named)) == (4, 0.0, "steps and guidance by the name sdxl_lightning_4step")


def test_lightning_without_trailing_steps_of_its_own_is_sampled_by_euler_with_trailing_ones(folder: Path) -> None:
    _scheduler(folder, "EulerDiscreteScheduler", timestep_spacing="leading", **EPSILON)
    found = _find(folder.rename(folder.with_name("realvis-lightning-8steps")))
    assert (found.settings.steps, found.settings.scheduler, found.sampler) == (8, "euler", {"timestep_spacing": "trailing"})
    assert found.settings_from == "steps, guidance and scheduler by the name realvis-lightning-8steps"
    assert "8 steps (timesteps trailing), no guidance (steps, guidance and scheduler by the name" in found.words()
    assert _find(found.folder, scheduler="own").settings.scheduler == "own"


@pytest.mark.parametrize(
    ("family", "steps", "guidance"),
    [("flux2-klein", 4, 1.0), ("flux2-klein-base", 50, 4.0), ("sana-sprint", 2, 4.5), ("sana", 20, 4.5), ("sd3", 28, 7.0)],
)
def test_folders_of_other_families_have_the_defaults_of_their_pipeline_or_of_their_distillation(
    tmp_path: Path, family: str, steps: int, guidance: float
) -> None:
    found = _find(tiny_pipeline(family, tmp_path / "model"))
    assert _taken(found)[:2] == (steps, guidance)
    assert found.is_distilled == (family in ("flux2-klein", "sana-sprint"))


def test_schnell_takes_four_steps_without_guidance(tmp_path: Path) -> None:
    assert _taken(_find(tiny_pipeline("flux-schnell", tmp_path / "my-flux.1-schnell")))[:2] == (4, 0.0)


@pytest.mark.parametrize("name", ["hyperrealistic", "flashlight", "photo-50-steps", "stepped", "sd21steps9"])
def test_ordinary_names_are_no_sign(folder: Path, name: str) -> None:
    assert _find(folder.rename(folder.with_name(name))).settings.steps == 50


def test_zero_terminal_snr_needs_trailing_steps_and_is_no_sign(folder: Path) -> None:
    _scheduler(folder, "DDIMScheduler", timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert _find(folder).settings.steps == 50


@pytest.mark.parametrize(
    ("kind", "settings", "steps", "message"),
    [
        ("LCMScheduler", {}, 60, "got --steps 60 for LCMScheduler, which has 50; expected at most 50; give for instance --steps 4"),
        ("LCMScheduler", {"original_inference_steps": 8}, 9, "got --steps 9 for LCMScheduler, which has 8; expected at most 8"),
        ("FlowMatchEulerDiscreteScheduler", {}, 4, "whose FlowMatchEulerDiscreteScheduler does not run with this model"),
        ("FlowMatchEulerDiscreteScheduler", {}, 4, "; expected a scheduler .* as StableDiffusionPipeline does; restore scheduler/"),
        ("DDIMScheduler", {}, 1001, "got --steps 1001 for DDIMScheduler, which was trained with 1000; expected at most 1000; give fewer"),
        ("DPMSolverSDEScheduler", {}, 4, "got DPMSolverSDEScheduler .*torchsde.*; expected a scheduler that runs here; install that$"),
        ("DDIMScheduler", {"prediction_type": "flow"}, 4, "with the prediction_type 'flow', .*correct prediction_type in that file"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, 4, "with the variance_type 'learned_range', .*such as fixed_small; correct"),
        ("SCMScheduler", {}, 4, r"whose SCMScheduler does not run with this model \(.*\); .*; restore scheduler/"),
        ("NoScheduler", {}, 4, "of the class NoScheduler; expected a scheduler of the installed diffusers; restore it"),
    ],
)
def test_a_scheduler_that_does_not_run_is_one_line_before_the_weights(
    folder: Path, compute: Compute, kind: str, settings: dict[str, Any], steps: int, message: str
) -> None:
    _scheduler(folder, kind, **settings)
    generator = _find(folder, steps=steps, guidance=1.0)
    shutil.rmtree(folder / "unet")
    with pytest.raises(InputError, match=message) as error:
        TextToImage(generator, compute)
    assert "\n" not in str(error.value)


def test_another_scheduler_helps_a_folder_whose_own_does_not_run(folder: Path) -> None:
    _scheduler(folder, "LCMScheduler")
    assert type(load_scheduler(_find(folder, steps=60, guidance=1.0, scheduler="ddim"))).__name__ == "DDIMScheduler"


def _halve(weights: Path, *, keep: bool = False) -> None:
    tensors = {name: value.half() for name, value in load_file(weights).items()}
    save_file(tensors, weights.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    if not keep:
        weights.unlink()


def _latents(generator: Generator, compute: Compute) -> torch.Tensor:
    model = TextToImage(generator, compute)
    with model.text_encoder_on_device():
        embeddings = model.encode_prompts(["a cat"])
    return model.denoise(embeddings, [3])


def test_half_precision_files_alone_are_read_in_float32(folder: Path, compute: Compute) -> None:
    expected = _latents(_find(folder, steps=2), compute)  # the embedded weights are half-precision numbers
    for part in (UNET, TEXT, "vae/diffusion_pytorch_model"):
        _halve(folder / f"{part}.safetensors")
    found = _find(folder, steps=2)
    assert found.variants == {"unet": "fp16", "vae": "fp16", "text_encoder": "fp16"}
    assert found.words().endswith("64 px, fp16 files")
    assert torch.equal(_latents(found, compute), expected)


def test_a_folder_of_mixed_precision_is_read_part_by_part(folder: Path, compute: Compute) -> None:
    expected = _latents(_find(folder, steps=2), compute)
    _halve(folder / f"{TEXT}.safetensors")
    _halve(folder / f"{UNET}.safetensors", keep=True)
    full, half = _find(folder, steps=2), _find(folder, steps=2, half=True)
    assert full.variants == {"unet": None, "vae": None, "text_encoder": "fp16"}
    assert half.variants == {"unet": "fp16", "vae": None, "text_encoder": "fp16"}
    assert full.words().endswith("unet full; vae full; text_encoder fp16")
    assert full.weights_hash != half.weights_hash
    assert torch.equal(_latents(full, compute), expected)


def test_half_precision_shards_are_read(folder: Path, compute: Compute) -> None:
    expected = _latents(_find(folder, steps=2), compute)
    for part, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        model = kind.from_pretrained(folder / part, dtype=torch.float16)
        (folder / part / "diffusion_pytorch_model.safetensors").unlink()
        size = sum(value.numel() * 2 for value in model.state_dict().values())
        model.save_pretrained(folder / part, variant="fp16", max_shard_size=size // 2 + 1)
    assert len(list(folder.glob("unet/*.fp16-0000*.safetensors"))) > 1
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    found = _find(folder, steps=2)
    assert found.variants == {"unet": "fp16", "vae": "fp16", "text_encoder": None}
    assert torch.equal(_latents(found, compute), expected)


def test_weights_of_mixed_dtypes_are_read_in_the_dtype_that_is_computed_in(folder: Path, compute: Compute) -> None:
    for part in (UNET, TEXT, "vae/diffusion_pytorch_model"):
        weights = load_file(folder / f"{part}.safetensors")
        mixed = {name: value.float() if number % 2 else value.half() for number, (name, value) in enumerate(sorted(weights.items()))}
        save_file(mixed, folder / f"{part}.safetensors", metadata={"format": "pt"})
    _edit(folder / "text_encoder" / "config.json", dtype=None)
    parts = TextToImage(_find(folder, steps=2), compute).parts
    for part in (parts.denoiser, parts.vae, parts.text_encoders["text_encoder"]):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}


@pytest.mark.parametrize("part", [UNET, TEXT, "vae/diffusion_pytorch_model"])
def test_weights_that_are_missing_are_told_and_never_random(folder: Path, compute: Compute, part: str) -> None:
    weights = load_file(folder / f"{part}.safetensors")
    missing, model = sorted(weights)[-1], Path(part).parent.name
    save_file({name: value for name, value in weights.items() if name != missing}, folder / f"{part}.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=rf"{model}, which does not load \(no weights for [^ ]+\)"):
        TextToImage(_find(folder, steps=2), compute)


@pytest.mark.parametrize("name", ["fast=nowhere", "fast=", "/no/such/folder", "./no", "~/sd", "", "=x", " "])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(InputError, match=r"got --generator .*; expected"):
        generator_settings(name, {})


@pytest.mark.parametrize(
    "kind",
    [
        "KandinskyV22Pipeline", "WuerstchenCombinedPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionInpaintPipeline",
        "AmusedPipeline", "StableCascadePipeline", "FluxFillPipeline", "WanPipeline", "NoSuchPipeline",
    ],
)  # fmt: skip
def test_pipelines_of_other_architectures_are_one_line(folder: Path, kind: str) -> None:
    _edit(folder / "model_index.json", _class_name=kind)
    with pytest.raises(InputError, match=rf"with the pipeline {kind}; expected a text-to-image pipeline that runs here "):
        _find(folder)


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("vae", "AutoencoderTiny"),
        ("vae", "ConsistencyDecoderVAE"),
        ("unet", "UNetSpatioTemporalConditionModel"),
        ("text_encoder", "XLMRobertaModel"),
    ],
)
def test_parts_of_another_class_are_one_line(folder: Path, part: str, kind: str) -> None:
    _edit(folder / "model_index.json", **{part: ["diffusers", kind]})
    with pytest.raises(InputError, match=rf"with the {part} {kind}; expected"):
        _find(folder)
