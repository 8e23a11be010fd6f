"""The sampler in place of a folder's own: the same timesteps and noise for a folder that was saved again, recorded where they differ from
what diffusers takes."""

import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.sampler_settings import _LEADING, _default_spacing, _first_timestep, recorded_settings, swapped_settings
from featurize.generate.schedulers import load_scheduler
from featurize.generate.text_to_image import TextToImage
from featurize.options import Scheduler
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.pretrained import embedded_model
from tests.support.tiny_pipelines import tiny_pipeline

# torch 2.13's tensors, which diffusers' schedulers hand to NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# As Stable Diffusion 2's own folder has it; "timestep_spacing" did not exist yet.
PUBLISHED = {
    "_class_name": "PNDMScheduler",
    **SD_BETAS,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SWAPPED: tuple[Scheduler, ...] = ("ddim", "dpm++", "euler")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded_model("generator"), tmp_path / "sd"))


def _of(folder: Path, config: Mapping[str, Any], *, saved_again: bool = False) -> Path:
    """Give a folder the configuration of a scheduler, as it is or as ``save_pretrained`` writes it."""
    if saved_again:
        getattr(diffusers, config["_class_name"]).from_config(dict(config)).save_pretrained(folder / "scheduler")
    else:
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(config)))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", config["_class_name"]]}))
    return folder


def _find(folder: Path, scheduler: str, steps: int) -> Generator:
    given = {"scheduler": scheduler, "steps": steps, "guidance": 3.0}
    return find_generator(str(folder), generator_settings(str(folder), given), half=False)


def _sampled(scheduler: Any, steps: int) -> tuple[list[float], float, torch.Tensor]:
    """Return the timesteps, the scale of the first noise, and the latents of a run whose prediction is always the same."""
    scheduler.set_timesteps(steps)
    latents = torch.linspace(-2, 2, 16).view(1, 1, 4, 4) * scheduler.init_noise_sigma
    for step in scheduler.timesteps:
        latents = scheduler.step(torch.cos(torch.arange(16.0)).view(1, 1, 4, 4), step, latents, return_dict=False)[0]
    return scheduler.timesteps.tolist(), float(scheduler.init_noise_sigma), latents


@pytest.mark.parametrize("kind", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", "LCMScheduler"])
@pytest.mark.parametrize("choice", SWAPPED)
def test_a_folder_that_was_saved_again_is_sampled_in_the_same_way(folder: Path, kind: str, choice: Scheduler) -> None:
    config = {**PUBLISHED, "_class_name": kind}
    before = _sampled(load_scheduler(_find(_of(folder, config), choice, 20)), 20)
    after = _sampled(load_scheduler(_find(_of(folder, config, saved_again=True), choice, 20)), 20)
    assert after[:2] == before[:2]
    assert torch.equal(after[2], before[2])


@pytest.mark.parametrize(
    ("choice", "kind"), [("dpm++", "DPMSolverMultistepScheduler"), ("euler", "EulerDiscreteScheduler"), ("ddim", "DDIMScheduler")]
)
def test_a_published_folder_is_sampled_as_diffusers_swaps_it(folder: Path, choice: Scheduler, kind: str) -> None:
    own = diffusers.PNDMScheduler.from_config(PUBLISHED)
    expected = _sampled(getattr(diffusers, kind).from_config(own.config), 20)
    found = _find(_of(folder, PUBLISHED), choice, 20)
    timesteps, sigma, latents = _sampled(load_scheduler(found), 20)
    assert (timesteps, sigma) == expected[:2]
    assert torch.equal(latents, expected[2])
    assert "sampler" not in found.fingerprint()  # stores from before this was recorded are known again


def test_the_timesteps_of_a_folder_saved_again_are_those_of_the_issue(folder: Path) -> None:
    found = load_scheduler(_find(_of(folder, PUBLISHED, saved_again=True), "dpm++", 20))
    assert _sampled(found, 20)[0][:2] == [999, 949]
    found = load_scheduler(_find(_of(folder, PUBLISHED, saved_again=True), "euler", 20))
    assert _sampled(found, 20)[1] == pytest.approx(14.6, abs=0.05)


def test_what_differs_from_diffusers_is_in_the_fingerprint(folder: Path) -> None:
    saved_again = _find(_of(folder, PUBLISHED, saved_again=True), "dpm++", 20)
    assert saved_again.fingerprint()["sampler"] == {"timestep_spacing": "linspace"}
    assert "sampler" not in _find(folder, "own", 20).fingerprint()


def test_a_spacing_that_somebody_chose_is_kept(folder: Path) -> None:
    chosen = {**PUBLISHED, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}  # as in SDXL's folder
    found = _find(_of(folder, chosen), "dpm++", 20)
    assert load_scheduler(found).config["timestep_spacing"] == "leading"
    assert "sampler" not in found.fingerprint()


def test_the_model_keeps_its_noise_where_its_folder_does_not_state_it(folder: Path) -> None:
    bare = {"_class_name": "LCMScheduler", "prediction_type": "epsilon"}
    scheduler = load_scheduler(_find(_of(folder, bare), "dpm++", 20))
    assert torch.equal(scheduler.alphas_cumprod, diffusers.LCMScheduler.from_config(bare).alphas_cumprod)
    assert recorded_settings(bare, "dpm++", steps=20) == {**SD_BETAS}


@pytest.mark.parametrize("choice", SWAPPED)
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("saved_again", [False, True])
def test_one_step_begins_with_noise(folder: Path, choice: Scheduler, spacing: str, saved_again: bool) -> None:
    _of(folder, {**PUBLISHED, "timestep_spacing": spacing}, saved_again=saved_again)
    scheduler = load_scheduler(_find(folder, choice, 1))
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [999]


@pytest.mark.parametrize(
    ("kind", "spacing", "first"),
    [
        ("DDIMScheduler", "leading", "1"),
        ("EulerDiscreteScheduler", "leading", "1"),
        ("EulerDiscreteScheduler", "linspace", "0"),
        ("EulerAncestralDiscreteScheduler", "leading", "1"),
        ("DPMSolverMultistepScheduler", "leading", "501"),
        ("UniPCMultistepScheduler", "leading", "501"),
    ],
)
def test_one_step_of_its_own_scheduler_that_begins_in_the_middle_is_one_line(folder: Path, kind: str, spacing: str, first: str) -> None:
    _of(folder, {**PUBLISHED, "_class_name": kind, "timestep_spacing": spacing})
    with pytest.raises(InputError, match=rf"got --steps 1 for {kind}, .* at timestep {first} of 1000; expected .*--scheduler euler"):
        load_scheduler(_find(folder, "own", 1))
    assert _sampled(load_scheduler(_find(folder, "euler", 1)), 1)[0] == [999]  # the advice helps


def test_a_model_of_few_steps_is_sampled_with_trailing_ones(folder: Path) -> None:
    turbo = folder.rename(folder.with_name("my-sdxl-lightning"))
    found = _find(_of(turbo, {**PUBLISHED, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}), "euler", 4)
    assert _sampled(load_scheduler(found), 4)[0] == [999, 749, 499, 249]
    assert found.fingerprint()["sampler"] == {"timestep_spacing": "trailing"}
    assert "trailing" in found.words()


@pytest.mark.parametrize(
    "own",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"_class_name": "SCMScheduler"},
        {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ],
)
def test_a_model_of_other_noise_keeps_its_own_sampler(own: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"got --scheduler euler for a generator that samples with .*; leave --scheduler out"):
        swapped_settings(own, "euler", steps=4)


def test_a_sampler_of_video_is_no_fault_of_the_steps(folder: Path) -> None:
    _of(folder, {"_class_name": "CogVideoXDPMScheduler"})
    with pytest.raises(
        InputError, match=r"sampler CogVideoXDPMScheduler, whose step takes .*old_pred_original_sample.*; restore scheduler/"
    ):
        load_scheduler(_find(folder, "own", 4))


def test_the_defaults_are_those_of_the_installed_library() -> None:
    spaced = {
        name: inspect.signature(getattr(diffusers, name).__init__).parameters["timestep_spacing"].default
        for name in dir(diffusers)
        if name.endswith("Scheduler") and "timestep_spacing" in inspect.signature(getattr(diffusers, name).__init__).parameters
    }
    assert {name: _default_spacing(name) for name in spaced} == spaced
    assert {name for name, spacing in spaced.items() if spacing == "leading"} == _LEADING


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_first_timesteps_are_those_of_the_library(steps: int, spacing: Any) -> None:
    kinds: dict[Scheduler, Any] = {
        "ddim": diffusers.DDIMScheduler,
        "dpm++": diffusers.DPMSolverMultistepScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
    }
    for choice, kind in kinds.items():
        scheduler = kind(timestep_spacing=spacing)
        scheduler.set_timesteps(steps)
        assert _first_timestep(choice, spacing, steps, 1000) == scheduler.timesteps.max()


@pytest.mark.parametrize("family", ["stable-diffusion", "z-image"])
def test_noise_is_float32_on_the_cpu_whatever_torch_takes_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    # Of one seed float64 noise is other noise, and that of half precision is rounded.
    folder = tiny_pipeline(family, tmp_path / "model")
    generator = find_generator(str(folder), generator_settings(str(folder), {"steps": 2, "guidance": 1.0}), half=False)
    model = TextToImage(generator, resolve_compute("cpu", "bfloat16", half="bfloat16"))
    with model.text_encoder_on_device():
        embeddings = model.encode_prompts(["a cat"])
    drawn: list[torch.Tensor] = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda tensors, *rest, **how: drawn.extend(tensors) or stack(tensors, *rest, **how))
    torch.set_default_dtype(torch.float64)
    try:
        model.denoise(embeddings, [3])
    finally:
        torch.set_default_dtype(torch.float32)
    expected = torch.randn(generator.latent_shape, generator=torch.Generator("cpu").manual_seed(3))
    assert drawn[0].dtype == torch.float32
    assert torch.equal(drawn[0], expected)
