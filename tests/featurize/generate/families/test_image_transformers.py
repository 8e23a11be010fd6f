"""Transformers that read latents as an image, beside diffusers' own pipelines.

One image in float32 on the CPU: bitwise. A batch: latents within 1e-5, because kernels sum in another order for more rows; a decoder of
random weights enlarges that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.beside_library import LONG, PROMPTS, SHORT, BesideLibrary

# The libraries: PRX's pipeline, schedulers where they meet NumPy 2, and Kandinsky 5's norms in half precision.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning"),
]
# Images of the side that is asked for; the libraries' usual sides are larger.
_EXACT: Mapping[str, Any] = {"use_resolution_binning": False}
_PLAIN: Mapping[str, Any] = {**_EXACT, "clean_caption": False}


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a family is compared.

    Attributes:
        scales: of guidance: none, if the family can do without, and some.
        steps: of the sampler.
        how: of ``BesideLibrary``.
        has_template: a prompt that is too long is cut otherwise than by the library.
        is_alone: the library's batches depend on the neighbours, or do not run: it is asked for one prompt at a time.
        carries_float32: latents are float32 between the steps, in any dtype of the models.
    """

    scales: tuple[float, ...]
    steps: int = 2
    how: Mapping[str, Any] = field(default_factory=dict)
    has_template: bool = False
    is_alone: bool = False
    carries_float32: bool = False


def _channels_last(noise_BChw: torch.Tensor) -> torch.Tensor:
    return noise_BChw.permute(0, 2, 3, 1).unsqueeze(1)


def _channels_first(latents: torch.Tensor) -> torch.Tensor:
    return latents.squeeze(1).permute(0, 3, 1, 2)


CASES: Mapping[str, Case] = {
    "prx": Case(scales=(1.0, 5.0), how={"call": _EXACT}, is_alone=True),
    "sana": Case(scales=(1.0, 4.5), how={"call": _EXACT}, carries_float32=True),
    "sana-sprint": Case(scales=(4.5,), how={"call": _EXACT}, carries_float32=True),
    "z-image": Case(scales=(0.0, 0.5), has_template=True, carries_float32=True),
    "pixart-sigma": Case(scales=(1.0, 4.5), how={"call": _PLAIN}),
    "pixart-alpha": Case(scales=(1.0, 4.5), how={"call": _PLAIN}),
    "sd3": Case(scales=(1.0, 7.0)),
    "sd3-without-t5": Case(scales=(1.0, 7.0)),
    "auraflow": Case(scales=(1.0, 3.5)),
    "hunyuan-dit": Case(scales=(1.0, 5.0), how={"call": _EXACT}),
    "cogview4": Case(scales=(1.0, 5.0), is_alone=True, carries_float32=True),
    "kandinsky5": Case(
        scales=(1.0, 3.5), how={"from_noise": _channels_last, "as_stored": _channels_first}, has_template=True, is_alone=True
    ),
}


@pytest.fixture(scope="session")
def beside(tiny: Callable[[str], Path]) -> Callable[[str], BesideLibrary]:
    """``beside(family)``: its folder and the library's pipeline, loaded once."""
    loaded: dict[str, BesideLibrary] = {}

    def one(family: str) -> BesideLibrary:
        if family not in loaded:
            loaded[family] = BesideLibrary(tiny(family), **CASES[family].how)
            if family == "kandinsky5":
                loaded[family].pipeline.resolutions = [(64, 64)]
        return loaded[family]

    return one


@pytest.mark.parametrize("family", CASES)
def test_one_image_is_bitwise_that_of_the_library(beside: Callable[[str], BesideLibrary], family: str) -> None:
    case, one = CASES[family], beside(family)
    for scale, prompt in ((case.scales[0], SHORT), (case.scales[-1], SHORT if case.has_template else LONG)):
        ours = one.ours([prompt], [7], case.steps, scale)
        assert ours.is_bitwise(one.library([prompt], [7], case.steps, scale)), (scale, prompt[:40])
        assert ours.latents.isfinite().all()


@pytest.mark.parametrize("family", CASES)
def test_a_batch_of_prompts_equals_the_librarys(beside: Callable[[str], BesideLibrary], family: str) -> None:
    case, one, prompts = CASES[family], beside(family), PROMPTS
    if case.has_template:
        prompts = tuple(prompt for prompt in PROMPTS if prompt != LONG)
    seeds, scale = range(len(prompts)), case.scales[-1]
    theirs = one.library_alone(prompts, case.steps, scale) if case.is_alone else one.library(prompts, seeds, case.steps, scale)
    assert one.ours(prompts, seeds, case.steps, scale).is_close(theirs)


@pytest.mark.parametrize("family", CASES)
def test_half_precision_is_bitwise_that_of_the_library(tiny: Callable[[str], Path], family: str) -> None:
    case = CASES[family]
    form = case.how.get("from_noise", lambda noise: noise)
    carried = torch.float32 if case.carries_float32 else torch.bfloat16
    one = BesideLibrary(tiny(family), **{**case.how, "from_noise": lambda noise: form(noise.to(carried)), "dtype": "bfloat16"})
    if family == "kandinsky5":
        one.pipeline.resolutions = [(64, 64)]
    ours, theirs = one.ours([SHORT], [7], case.steps, case.scales[-1]), one.library([SHORT], [7], case.steps, case.scales[-1])
    assert torch.equal(ours.latents, theirs.latents)
    assert (ours.images - theirs.images).abs().max() <= 1 / 256  # the library scales them to [0, 1] in half precision


@pytest.mark.parametrize("family", CASES)
def test_a_prompt_is_counted_as_cut_where_more_of_it_changes_nothing(beside: Callable[[str], BesideLibrary], family: str) -> None:
    models = beside(family).loaded(CASES[family].steps, CASES[family].scales[0])
    counts = models.family.tokens_of(models.parts.tokenizers, [SHORT, LONG, f"{LONG} and more"])
    assert counts[0] <= models.family.tokens_read < counts[1] < counts[2]
    with models.text_encoder_on_device():
        long, longer = models.encode_prompts([LONG]), models.encode_prompts([f"{LONG} and more"])
    assert all(torch.equal(long[name], longer[name]) for name in long.tensors)


@pytest.mark.parametrize("family", [family for family, case in CASES.items() if case.has_template])
def test_a_prompt_that_is_too_long_for_a_template_leaves_its_end(beside: Callable[[str], BesideLibrary], family: str) -> None:
    one, case = beside(family), CASES[family]
    models = one.loaded(case.steps, case.scales[0])
    tokens = models.family.tokens_of(models.parts.tokenizers, [LONG[:end] for end in range(len(LONG))])
    fits = max(end for end, count in enumerate(tokens) if count <= models.family.tokens_read)
    assert one.ours([LONG], [7], case.steps, case.scales[0]).is_bitwise(one.library([LONG[:fits]], [7], case.steps, case.scales[0]))
