"""The latents of Lumina-Image 2 beside those of diffusers' Lumina2Pipeline."""

from pathlib import Path

import diffusers
import pytest

from featurize.generate.families.lumina2 import Lumina2
from lugpi_core.errors import InputError
from tests.support.family_runs import LONG, PROMPTS, Twins, changed_family
from tests.support.tiny_pipelines import tiny_pipeline


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    folder = tiny_pipeline("lumina2", tmp_path_factory.mktemp("lumina2") / "folder")
    return Twins(folder, guidance_scale=lambda scale, prompts: scale)


@pytest.mark.parametrize("prompt", [*PROMPTS, LONG])
@pytest.mark.parametrize(("scale", "kind"), [(1.0, "none"), (4.0, "cfg")])
def test_latents_are_the_librarys(twins: Twins, prompt: str, scale: float, kind: str) -> None:
    assert twins.family.guidance_kind(scale) == kind
    twins.check_single(prompt, scale)


def test_the_shift_of_a_sampler_with_dynamic_shifting_is_the_librarys(tmp_path: Path) -> None:
    folder = tiny_pipeline("lumina2", tmp_path / "folder")
    diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    Twins(folder, guidance_scale=4.0).check_single(PROMPTS[0], 4.0)


def test_a_batch_has_the_latents_of_each_prompt(twins: Twins) -> None:
    twins.check_batch(4.0)


def test_the_instruction_counts_and_is_the_librarys(twins: Twins) -> None:
    assert twins.family.notes == {"instruction": f"{twins.pipeline.system_prompt} <Prompt Start> "}
    (overhead,) = twins.tokens([""])
    whole, cut = "x" * (256 - overhead), "x" * (257 - overhead)
    assert twins.tokens([whole, cut]) == [256, 257]
    twins.check_cut(whole, cut)


def test_settings_are_the_librarys(twins: Twins) -> None:
    assert (twins.family.usual.steps, twins.family.usual.guidance) == (30, 4.0)
    assert (twins.family.native_px, twins.family.multiple_px) == (64, 16)
    assert twins.family.layers_read("text_encoder") == 1


def test_parts_that_do_not_fit_are_refused(twins: Twins) -> None:
    with pytest.raises(InputError, match="latents and text of widths"):
        changed_family(Lumina2, twins.family, "transformer", {"cap_feat_dim": 32}).check()


def test_half_precision_gives_the_librarys_latents_too(twins: Twins) -> None:
    twins.check_half("bfloat16", 4.0)
