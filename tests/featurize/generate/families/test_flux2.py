"""The latents of FLUX.2 and FLUX.2 klein beside those of diffusers' pipelines."""

from pathlib import Path

import pytest
import torch
from diffusers import Flux2Pipeline
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

from featurize.generate.families.flux2 import Flux2, Flux2Klein
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from tests.support.family_runs import LONG, PROMPTS, Twins, changed_family
from tests.support.tiny_pipelines import tiny_pipeline


def _scale(scale: float, prompts: int) -> float:
    return scale


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return Twins(tiny_pipeline("flux2-klein", tmp_path_factory.mktemp("klein") / "distilled"), guidance_scale=_scale)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return Twins(tiny_pipeline("flux2-klein-base", tmp_path_factory.mktemp("klein") / "base"), guidance_scale=_scale)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    folder = tiny_pipeline("flux2", tmp_path_factory.mktemp("flux2") / "large")
    return Twins(folder, guidance_scale=_scale, stored=lambda latents: latents.permute(0, 2, 1).unflatten(2, (4, 4)))


def _check_klein(twins: Twins, prompt: str, scale: float) -> None:
    """The library's klein returns what its decoder reads, FLUX.2's the sequence of patches."""
    ours = twins.ours([prompt], [1], scale)
    assert ours.shape == (1, 16, 4, 4)
    assert torch.equal(twins.family.decoder_input(twins.parts.vae, ours), twins.library([prompt], [1], scale))
    assert torch.equal(twins.images(ours), twins.library([prompt], [1], scale, "pt"))


@pytest.mark.filterwarnings("ignore:--guidance 4 has no effect:UserWarning")
@pytest.mark.parametrize("prompt", PROMPTS)
def test_distilled_klein_gives_the_librarys_latents_and_takes_no_guidance(klein: Twins, prompt: str) -> None:
    assert klein.family.guidance_kind(4.0) == "none"
    _check_klein(klein, prompt, 4.0)


def test_a_scale_that_does_nothing_is_told(klein: Twins, base: Twins) -> None:
    def find(folder: Path, **given: float) -> Generator:
        return find_generator(str(folder), generator_settings(str(folder), given), half=False)

    with pytest.warns(UserWarning, match=r"^--guidance 3 has no effect: .*distilled takes no guidance"):
        idle = find(klein.folder, guidance=3.0)
    plain = find(klein.folder)
    assert idle.fingerprint() == plain.fingerprint(), "its images are the same"
    assert idle.words().startswith("4 steps, no guidance")
    assert find(base.folder, guidance=3.0).words().startswith("50 steps, guidance 3 ")
    find(klein.folder, guidance=1.0)


def test_what_only_a_unet_has_is_refused(klein: Twins) -> None:
    name = str(klein.folder)
    with pytest.raises(InputError, match=r"got --deepcache 3 for .*, which has no UNet; .*; leave out --deepcache"):
        find_generator(name, generator_settings(name, {"deepcache": 3}), half=False)
    compute = resolve_compute("cpu", "float32", half="bfloat16")
    with pytest.raises(InputError, match="got --attention xformers for a Flux2Transformer2DModel; expected a generator with a UNet"):
        TextToImage(klein.models().generator, compute, attention="xformers")


@pytest.mark.parametrize(("scale", "kind"), [(1.0, "none"), (4.0, "cfg")])
def test_base_klein_is_guided_as_the_library_guides_it(base: Twins, scale: float, kind: str) -> None:
    assert base.family.guidance_kind(scale) == kind
    _check_klein(base, PROMPTS[1], scale)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_flux2_takes_the_scale_as_an_input_and_gives_the_librarys_latents(large: Twins, scale: float) -> None:
    assert large.family.guidance_kind(scale) == "embedded"
    large.check_single("[IMG] " + PROMPTS[1], scale)


def test_a_batch_has_the_latents_of_each_prompt(base: Twins) -> None:
    base.check_batch(4.0)


@pytest.mark.parametrize(("name", "overhead"), [("klein", 23), ("large", 159)])
def test_a_long_prompt_loses_its_own_end_and_not_the_templates(name: str, overhead: int, request: pytest.FixtureRequest) -> None:
    twins: Twins = request.getfixturevalue(name)
    kept = LONG[: 512 - overhead]
    assert twins.tokens(["", kept, LONG]) == [overhead, 512, overhead + len(LONG)]
    twins.check_cut(kept, LONG)


def test_the_instruction_is_the_librarys(large: Twins) -> None:
    assert large.family.notes == {"system_message": SYSTEM_MESSAGE}
    assert isinstance(large.pipeline, Flux2Pipeline)


def test_settings_are_the_librarys(klein: Twins, base: Twins, large: Twins) -> None:
    assert [(one.family.usual.steps, one.family.usual.guidance) for one in (klein, base, large)] == [(4, 1.0), (50, 4.0), (50, 4.0)]
    assert (klein.family.native_px, klein.family.multiple_px) == (1024, 16)
    assert klein.family.load_class("text_encoder") == "Qwen3Model"
    assert large.family.load_class("text_encoder") == "Mistral3Model"


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"in_channels": 128}, "expected a transformer of 16"),
        ("transformer", {"joint_attention_dim": 96}, "of which three give 48"),
        ("text_encoder", {"num_hidden_layers": 26}, "at least 27 layers"),
    ],
)
def test_parts_that_do_not_fit_are_refused(klein: Twins, part: str, changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed_family(Flux2Klein, klein.family, part, changes).check()


def test_layers_are_counted_in_the_language_model_of_a_model_that_sees(large: Twins) -> None:
    changed_family(Flux2, large.family, "text_encoder", {}).check()
    with pytest.raises(InputError, match="at least 30 layers"):
        changed_family(Flux2, large.family, "text_encoder", {"text_config": {"hidden_size": 16, "num_hidden_layers": 29}}).check()


def test_packing_is_undone(large: Twins) -> None:
    noise = torch.randn(1, 16, 4, 4)
    first = large.family.first_latents(large.parts.scheduler, noise, torch.float32)
    assert torch.equal(large.family.stored(first, 64), noise)
