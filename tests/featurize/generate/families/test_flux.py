"""FLUX.1's latents beside those of diffusers' FluxPipeline."""

import pytest

from featurize.generate.families.flux import Flux
from featurize.generate.families.packed import unpacked
from lugpi_core.errors import InputError
from tests.support.family_runs import LONG, PROMPTS, Twins, changed_family
from tests.support.tiny_pipelines import tiny_pipeline


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    folder = tiny_pipeline("flux-dev", tmp_path_factory.mktemp("flux") / "dev")
    return Twins(folder, stored=lambda latents: unpacked(latents, 4), guidance_scale=lambda scale, prompts: scale)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    folder = tiny_pipeline("flux-schnell", tmp_path_factory.mktemp("flux") / "schnell")
    return Twins(
        folder,
        stored=lambda latents: unpacked(latents, 4),
        negative_prompt=lambda scale, prompts: [""] * prompts,
        true_cfg_scale=lambda scale, prompts: scale,
    )


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_dev_takes_the_scale_as_an_input_and_gives_the_librarys_latents(dev: Twins, scale: float) -> None:
    assert dev.family.guidance_kind(scale) == "embedded"
    dev.check_single(PROMPTS[0], scale)
    assert not dev.ours([PROMPTS[0]], [1], 1.0).equal(dev.ours([PROMPTS[0]], [1], 3.5))


@pytest.mark.parametrize(("scale", "kind"), [(0.0, "none"), (1.0, "none"), (3.5, "cfg")])
def test_schnell_is_guided_as_with_the_librarys_true_guidance(schnell: Twins, scale: float, kind: str) -> None:
    assert schnell.family.guidance_kind(scale) == kind
    schnell.check_single(PROMPTS[1], scale)


def test_a_batch_has_the_latents_of_each_prompt(dev: Twins, schnell: Twins) -> None:
    dev.check_batch(3.5)
    schnell.check_batch(3.5)


def test_a_long_prompt_is_cut_as_the_library_cuts_it(schnell: Twins) -> None:
    schnell.check_single(LONG, 1.0)
    assert schnell.tokens(["a" * 511, "a" * 512, LONG]) == [512, 513, 1501]


def test_settings_are_the_librarys(dev: Twins, schnell: Twins) -> None:
    assert (dev.family.usual.steps, dev.family.usual.guidance) == (28, 3.5)
    assert schnell.family.usual.guidance == 1.0
    assert (dev.family.native_px, dev.family.multiple_px, dev.family.tokens_read) == (1024, 16, 512)


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("transformer", "in_channels", 384, "expected a transformer of 64"),
        ("transformer", "joint_attention_dim", 32, "pooled text and tokens of widths"),
        ("text_encoder", "hidden_size", 32, "whose encoders give"),
    ],
)
def test_parts_that_do_not_fit_are_refused(dev: Twins, part: str, field: str, value: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed_family(Flux, dev.family, part, {field: value}).check()
