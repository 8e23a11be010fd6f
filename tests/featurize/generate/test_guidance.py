"""Guidance in a part of the steps: beside diffusers' pipelines with another scale in every step, rows counted; and what is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HeunDiscreteScheduler, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.guiders import ClassifierFreeGuidance

from featurize.generate.denoiser_rows import denoiser_rows
from featurize.generate.families.family import Family
from featurize.generate.families.longcat import LongCatImage
from featurize.generate.families.lumina2 import Lumina2
from featurize.generate.families.packed import unpacked
from featurize.generate.families.unet import StableDiffusion
from featurize.generate.families.z_image import ZImage
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.guidance import Guide, guided_steps, in_words, interval_of
from featurize.generate.text_to_image import TextToImage
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.pretrained import embedded_model, read_config
from tests.support.family_runs import PROMPTS, SIZE_PX, Twins
from tests.support.scale_by_step import counted_rows
from tests.support.tiny_pipelines import tiny_pipeline

# The pipelines of diffusers, and schedulers where they meet NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def _scale(scale: float, prompts: int) -> float:
    return scale


def _empty(scale: float, prompts: int) -> list[str]:
    return [""] * prompts


def _unpacked(latents: torch.Tensor) -> torch.Tensor:
    return unpacked(latents, 4)


_PLAIN: Mapping[str, Any] = {"guidance_scale": _scale}
_EXACT: Mapping[str, Any] = {**_PLAIN, "use_resolution_binning": False}
# Family → how the library's pipeline is called.
CASES: Mapping[str, Mapping[str, Any]] = {
    "stable-diffusion": _PLAIN,
    "sdxl": _PLAIN,
    "flux-schnell": {"true_cfg_scale": _scale, "negative_prompt": _empty, "stored": _unpacked},
    "qwen-image": {"true_cfg_scale": _scale, "negative_prompt": _empty, "stored": _unpacked},
    "chroma": {**_PLAIN, "stored": _unpacked},
    "ovis": {**_PLAIN, "stored": _unpacked},
    "longcat": {**_PLAIN, "stored": _unpacked, "enable_prompt_rewrite": False},
    "lumina2": _PLAIN,
    "ernie": _PLAIN,
    "prx": _EXACT,
    "sana": _EXACT,
    "z-image": _PLAIN,
    "pixart-sigma": {**_EXACT, "clean_caption": False},
    "sd3": _PLAIN,
    "auraflow": _PLAIN,
    "hunyuan-dit": _EXACT,
    "cogview4": _PLAIN,
}
# Scales of guidance, and of none, where they are not 4 and 1.
SCALES = {"z-image": (0.5, 0.0)}


@pytest.mark.parametrize("family", CASES)
def test_guidance_in_a_part_of_the_steps_is_the_librarys_with_a_scale_for_each(family: str, tmp_path: Path) -> None:
    twins = Twins(tiny_pipeline(family, tmp_path / "generator"), **CASES[family])
    twins.check_interval(*SCALES.get(family, (4.0, 1.0)))


def _demo(**settings: Any) -> Generator:
    return find_generator("demo", generator_settings("demo", settings), half=False)


def _loaded(generator: Generator) -> TextToImage:
    return TextToImage(generator, resolve_compute("cpu", "float32", half="float16"))


def _latents(models: TextToImage, prompt: str = PROMPTS[0]) -> torch.Tensor:
    with models.text_encoder_on_device():
        embeddings = models.encode_prompts([prompt])
    return models.denoise(embeddings, [1])


def test_the_librarys_callback_that_cuts_guidance_off_gives_the_same_latents_one_step_later() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(embedded_model("generator"), safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    models = _loaded(_demo(steps=6, guidance_interval="0:0.5", scheduler="own"))
    # It acts after the step of its number, which is still guided: the third of six here.
    theirs = pipeline(
        PROMPTS[0],
        generator=torch.Generator().manual_seed(1),
        num_inference_steps=6,
        guidance_scale=3.0,
        output_type="latent",
        callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2),
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        height=SIZE_PX,
        width=SIZE_PX,
    ).images
    assert (_latents(models) - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("interval", ["0:1", "0:0.5", "0.25:0.75", "0.1:0.2", "0.5:1"])
@pytest.mark.parametrize("steps", [20, 28, 7])
def test_the_steps_of_an_interval_are_those_of_the_librarys_guiders(interval: str, steps: int) -> None:
    start, stop = map(float, interval.split(":"))
    guider = ClassifierFreeGuidance(guidance_scale=3.0, start=start, stop=stop)
    guided = []
    for number in range(steps):
        guider.set_state(step=number, num_inference_steps=steps, timestep=torch.tensor(0))
        guided += [number] if guider.num_conditions == 2 else []
    assert guided == list(guided_steps(interval, steps))


def test_fractions_are_taken_as_they_are_written() -> None:
    assert guided_steps("0.29:0.57", 100) == range(29, 57)  # as floats, 0.29 × 100 and 0.57 × 100 are just below


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, 2 * 20),
        ({"guidance_interval": "0:1"}, 2 * 20),
        ({"guidance_interval": "0.2:0.7"}, 20 + 10),
        ({"guidance_interval": "0:0.33", "guidance_reuse": True}, 20 + 6),
    ],
)
def test_rows_of_the_denoiser_are_counted_to_the_row(settings: dict[str, Any], rows: int) -> None:
    generator = _demo(steps=20, **settings)
    models = _loaded(generator)
    with counted_rows(models.parts.denoiser) as counted:
        _latents(models)
    assert sum(counted) == denoiser_rows(generator).total == rows


def test_the_last_difference_stands_for_the_missing_half() -> None:
    """A denoiser that guidance moves by the same in every step gives the latents of whole guidance from half the rows."""
    push, predict = torch.linspace(-1, 1, 8 * 8 * 8).reshape(1, 8, 8, 8), StableDiffusion.predict

    def moved(self: StableDiffusion, parts: Any, latents: torch.Tensor, *given: Any) -> torch.Tensor:
        *rest, copies = given
        conditional = predict(self, parts, latents, *rest, copies)[-len(latents) :]
        return conditional if copies == 1 else torch.cat([conditional - push, conditional])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StableDiffusion, "predict", moved)
        whole, reused, dropped = (
            _latents(_loaded(_demo(steps=6, **settings)))
            for settings in ({}, {"guidance_interval": "0:0.5", "guidance_reuse": True}, {"guidance_interval": "0:0.5"})
        )
    assert (reused - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert (dropped - whole).abs().max() > 1e-2 * whole.abs().max()


@pytest.mark.parametrize("kind", [StableDiffusion, ZImage, Lumina2, LongCatImage])
def test_a_kept_difference_is_guided_by_the_familys_own_formula(kind: type[Family]) -> None:
    family = kind.__new__(kind)  # it needs no configuration for that
    first, later = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)).chunk(2), torch.randn(2, 6, 8)
    guide = Guide(family, 3.0, reuses=True)
    assert guide.guided(later, 1) is later  # nothing is kept before the first guided step
    assert torch.equal(guide.guided(torch.cat(first), 2), family.guide(torch.cat(first), 3.0))
    expected = family.guide(torch.cat([later - (first[1] - first[0]), later]), 3.0)
    assert torch.equal(guide.guided(later, 1), expected)
    assert Guide(family, 3.0, reuses=False).guided(later, 1) is later


def test_the_fingerprint_has_an_interval_where_there_is_one() -> None:
    plain = _demo().fingerprint()
    assert _demo(guidance_interval="0:1").fingerprint() == plain
    assert _demo(guidance_interval="0/1:1.0").fingerprint() == plain
    halves = _demo(guidance_interval=" 0.0:.50").fingerprint()
    assert halves == {**plain, "guidance_interval": "0:0.5"}
    assert _demo(guidance_interval="0:1/3").fingerprint()["guidance_interval"] == "0:1/3"
    assert _demo(guidance_interval="0:1/2", guidance_reuse=True).fingerprint() == {**halves, "guidance_reuse": True}


@pytest.mark.parametrize(
    "given",
    [
        *("0.5", "0.5:0.2", "0.5:0.5", "-0.1:0.5", "0:1.1", "0:x", "", ":", "0:0.5:1", "nan:1", "0:inf", "1/0:1", "20%:50%"),
        *("1e-5000:1", "1e-99999999:1", f"0:{10**19}/{10**19 + 1}", pytest.param(f"1/{'9' * 5000}:1", id="5000 digits")),
    ],
)
def test_what_is_no_interval_is_refused(given: str) -> None:
    with pytest.raises(
        InputError, match=r"got --guidance-interval .*; expected a:b with 0 <= a < b <= 1, fractions of the .* 18 decimals; give"
    ):
        generator_settings("demo", {"guidance_interval": given})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 1.0, "guidance_interval": "0:0.5"}, r"which runs without guidance \(--guidance 1\); .*; give --guidance above 1, or"),
        ({"guidance_reuse": True}, "got --guidance-reuse without --guidance-interval"),
        ({"guidance_reuse": True, "guidance_interval": "0:1"}, "got --guidance-reuse without --guidance-interval"),
        (
            {"guidance_reuse": True, "guidance_interval": "0.5:1"},
            "got --guidance-reuse with --guidance-interval 0.5:1, after which there is",
        ),
    ],
)
def test_an_interval_with_nothing_to_bound_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _demo(**settings)


@pytest.mark.parametrize("given", ["0:0.3333333333333333", "0:5e-05", "0:123456789012345678/999999999999999999", "0.00001:1"])
def test_the_one_spelling_of_an_interval_is_read_again(given: str) -> None:
    spelling = in_words(interval_of(given))
    assert spelling is not None
    assert interval_of(spelling) == interval_of(given)


def test_an_interval_without_a_step_is_refused_by_the_samplers_own_count(tmp_path: Path) -> None:
    """Heun's sampler of diffusers evaluates the denoiser twice in every step but the last."""
    with pytest.raises(InputError, match=r"got --guidance-interval 0.3:0.4 of 4 steps, in which no step is; .*; widen it"):
        denoiser_rows(_demo(guidance_interval="0.3:0.4"))
    folder = tiny_pipeline("stable-diffusion", tmp_path / "generator")
    HeunDiscreteScheduler.from_config(read_config(folder / "scheduler/scheduler_config.json")).save_pretrained(folder / "scheduler")

    def rows(interval: str) -> int:
        settings = generator_settings(str(folder), {"steps": 20, "guidance": 3.0, "guidance_interval": interval})
        return denoiser_rows(find_generator(str(folder), settings, half=False)).total

    with pytest.raises(InputError, match=r"got --guidance-interval 0.499:0.5 of 39 evaluations in 20 steps, in which no step is"):
        rows("0.499:0.5")  # of 20 steps it would be the tenth
    assert rows("0.48:0.49") == 39 + 1  # and this none


@pytest.mark.parametrize(
    ("family", "how", "advice"),
    [
        ("lcm", "takes the guidance scale as an input of its denoiser", "leave out --guidance-interval"),
        ("flux-dev", "takes the guidance scale as an input of its denoiser", "leave out --guidance-interval"),
        ("flux2-klein", "runs without guidance", "leave out --guidance-interval"),
        ("flux-schnell", "runs without guidance", "give --guidance above 1, or leave out"),
    ],
)
def test_a_family_without_such_guidance_refuses_it(tmp_path: Path, family: str, how: str, advice: str) -> None:
    folder = str(tiny_pipeline(family, tmp_path / "generator"))
    with pytest.raises(InputError, match=rf"got --guidance-interval 0:0.5 for .*, which {how} .*; {advice}"):
        find_generator(folder, generator_settings(folder, {"guidance_interval": "0:0.5"}), half=False)
