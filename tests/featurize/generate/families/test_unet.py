"""Stable Diffusion 1, XL and latent consistency models through the loader and the loop of a run, beside diffusers' own pipelines."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from featurize.generate.denoiser_rows import denoiser_rows
from featurize.generate.families.unet import LatentConsistency
from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from tests.support.family_runs import LONG, PROMPTS, SIZE_PX, STEPS, changed_family
from tests.support.tiny_pipelines import library_pipeline

CPU = Compute(device="cpu", device_name="CPU", dtype="float32", threads=1)
Tiny = Callable[[str], Path]
# diffusers' schedulers meet NumPy 2 with it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def _ours(folder: Path, **settings: Any) -> TextToImage:
    given = {"size_px": SIZE_PX, "steps": STEPS, **settings}
    return TextToImage(find_generator(str(folder), generator_settings(str(folder), given), half=False), CPU)


def _latents(model: TextToImage, prompts: list[str], seeds: list[int]) -> torch.Tensor:
    with model.text_encoder_on_device():
        embeddings = model.encode_prompts(prompts)
    return model.denoise(embeddings, seeds)


def _librarys(folder: Path, prompts: list[str], seeds: list[int], guidance: float, output: str = "latent") -> torch.Tensor:
    how = {"height": SIZE_PX, "width": SIZE_PX, "num_inference_steps": STEPS, "output_type": output}
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    drawn: torch.Tensor = library_pipeline(folder)(prompt=prompts, generator=noise, guidance_scale=guidance, **how)[0]
    return drawn


@pytest.mark.parametrize(("name", "is_read"), [("stable-diffusion", False), ("lcm", False), ("sdxl", True)])
def test_only_the_pipeline_of_xl_reads_means_of_a_decoder(tiny: Tiny, tmp_path: Path, name: str, is_read: bool) -> None:
    folder = Path(shutil.copytree(tiny(name), tmp_path / name))
    config = folder / "vae" / "config.json"
    means = {"latents_mean": [0.5, -1.0, 0.2, 1.5], "latents_std": [1.5, 0.5, 2.0, 3.0]}
    config.write_text(json.dumps({**json.loads(config.read_text()), **means}))
    plain, model = _ours(tiny(name), guidance=1.5), _ours(folder, guidance=1.5)
    ours = _latents(model, [PROMPTS[0]], [1])
    assert torch.equal(model.decode(ours), _librarys(folder, [PROMPTS[0]], [1], 1.5, "pt"))
    assert torch.equal(model.decode(ours), plain.decode(ours)) != is_read


# PNDM evaluates its second step twice.
@pytest.mark.parametrize(
    ("name", "guidance", "rows"),
    [("stable-diffusion", 5.0, 8), ("stable-diffusion", 1.0, 4), ("sdxl", 5.0, 6), ("sdxl", 0.0, 3), ("lcm", 8.5, 3)],
)
def test_latents_and_images_are_the_librarys(tiny: Tiny, name: str, guidance: float, rows: int) -> None:
    model = _ours(tiny(name), guidance=guidance)
    for prompt in (PROMPTS[0], LONG):
        ours = _latents(model, [prompt], [1])
        assert torch.equal(ours, _librarys(tiny(name), [prompt], [1], guidance))
        assert torch.equal(model.decode(ours), _librarys(tiny(name), [prompt], [1], guidance, "pt"))
    assert denoiser_rows(model.generator).total == rows


@pytest.mark.parametrize(("name", "guidance"), [("stable-diffusion", 5.0), ("sdxl", 5.0), ("lcm", 8.5)])
def test_a_batch_has_the_librarys_latents_of_every_prompt(tiny: Tiny, name: str, guidance: float) -> None:
    model, seeds = _ours(tiny(name), guidance=guidance), [3, 4, 5, 6]
    batch = _latents(model, list(PROMPTS), seeds)
    for row, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
        expected = _librarys(tiny(name), [prompt], [seed], guidance)
        assert (batch[row] - expected[0]).abs().max() <= 1e-5 * expected.abs().max()


def test_heun_evaluates_its_unet_twice_a_step_but_the_last(tiny: Tiny) -> None:
    import diffusers

    model = _ours(tiny("stable-diffusion"), guidance=3.0)
    heun = diffusers.HeunDiscreteScheduler.from_config(model.parts.scheduler.config)
    heun.set_timesteps(STEPS, device="cpu")
    assert len(model.family.times(heun)) == 2 * STEPS - 1


def test_the_first_text_encoder_of_xl_stops_before_the_layer_that_nobody_reads(tiny: Tiny) -> None:
    model = _ours(tiny("sdxl"))
    layers = [encoder.config.num_hidden_layers for encoder in model.parts.text_encoders.values()]
    assert layers == [2, 3]


def test_a_latent_consistency_model_without_guidance_as_input_is_refused(tiny: Tiny) -> None:
    family = changed_family(LatentConsistency, _ours(tiny("lcm")).family, "unet", {"time_cond_proj_dim": None})
    with pytest.raises(InputError, match=r"whose unet has no time_cond_proj_dim; .*; change _class_name in model_index.json"):
        family.check()
