"""ERNIE-Image's latents beside those of diffusers' ErnieImagePipeline."""

import pytest

from featurize.generate.families.ernie import ErnieImage
from lugpi_core.errors import InputError
from tests.support.family_runs import LONG, PROMPTS, Twins, changed_family
from tests.support.tiny_pipelines import tiny_pipeline

# The library's pipeline hands a tensor to NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    folder = tiny_pipeline("ernie", tmp_path_factory.mktemp("ernie") / "folder")
    return Twins(folder, guidance_scale=lambda scale, prompts: scale)


@pytest.mark.parametrize("prompt", [*PROMPTS, LONG])
@pytest.mark.parametrize(("scale", "kind"), [(1.0, "none"), (4.0, "cfg")])
def test_latents_are_the_librarys(twins: Twins, prompt: str, scale: float, kind: str) -> None:
    assert twins.family.guidance_kind(scale) == kind
    twins.check_single(prompt, scale)


def test_a_batch_has_the_latents_of_each_prompt(twins: Twins) -> None:
    twins.check_batch(4.0)


def test_settings_are_the_librarys(twins: Twins) -> None:
    assert (twins.family.usual.steps, twins.family.usual.guidance) == (50, 4.0)
    assert (twins.family.multiple_px, twins.family.tokens_read, twins.family.layers_read("text_encoder")) == (16, 2048, 2)


def test_parts_that_do_not_fit_are_refused(twins: Twins) -> None:
    with pytest.raises(InputError, match="patches and text of widths"):
        changed_family(ErnieImage, twins.family, "transformer", {"in_channels": 32}).check()
