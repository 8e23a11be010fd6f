"""Qwen-Image's latents beside those of diffusers' QwenImagePipeline."""

from pathlib import Path
from typing import Any

import pytest

from featurize.generate.families import qwen
from featurize.generate.families.packed import unpacked
from featurize.generate.families.qwen import QwenImage
from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.schedulers import load_scheduler
from lugpi_core.errors import InputError
from tests.support.family_runs import LONG, PROMPTS, Twins, changed_family
from tests.support.tiny_pipelines import library_pipeline, tiny_pipeline


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return Twins(
        tiny_pipeline("qwen-image", tmp_path_factory.mktemp("qwen") / "plain"),
        stored=lambda latents: unpacked(latents, 4),
        negative_prompt=lambda scale, prompts: [""] * prompts,
        true_cfg_scale=lambda scale, prompts: scale,
    )


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(("scale", "kind"), [(1.0, "none"), (4.0, "cfg")])
def test_latents_are_the_librarys_with_an_empty_negative_prompt(plain: Twins, prompt: str, scale: float, kind: str) -> None:
    assert plain.family.guidance_kind(scale) == kind
    plain.check_single(prompt, scale)


def test_a_batch_has_the_latents_of_each_prompt(plain: Twins) -> None:
    plain.check_batch(4.0)


def test_a_batch_is_no_longer_than_its_longest_prompt(plain: Twins) -> None:
    embeddings = plain.family.encode(plain.parts, ["a", PROMPTS[1]])
    inputs = qwen._text_inputs(embeddings.rows([0, 0]))
    assert inputs["encoder_hidden_states"].shape[:2] == (2, plain.tokens(["a"])[0] - 34)
    assert inputs["encoder_hidden_states_mask"] is None
    assert qwen._text_inputs(embeddings)["encoder_hidden_states_mask"].sum(dim=1).tolist() == embeddings["lengths"].tolist()


def test_a_long_prompt_loses_its_own_end_and_not_the_templates(plain: Twins) -> None:
    (overhead,) = plain.tokens([""])
    kept = LONG[: 546 - overhead]
    assert plain.tokens([kept]) == [546]
    plain.check_cut(kept, LONG)
    plain.check_single(kept, 1.0)


def test_the_template_is_the_librarys(plain: Twins) -> None:
    assert plain.family.notes == {"template": plain.pipeline.prompt_template_encode}
    assert plain.pipeline.prompt_template_encode_start_idx == QwenImage.unseen_tokens


@pytest.mark.parametrize(
    ("changes", "message"), [({"in_channels": 64}, "expected a transformer of 32"), ({"guidance_embeds": True}, "diffusers cannot run")]
)
def test_what_does_not_run_is_refused(plain: Twins, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed_family(QwenImage, plain.family, "transformer", changes).check()


def test_one_step_which_the_sampler_cannot_stretch_is_refused(plain: Twins) -> None:
    generator = find_generator(str(plain.folder), generator_settings(str(plain.folder), {"steps": 1}), half=False)
    with pytest.raises(InputError, match=r"^got 1 step of a sampler whose last time is 0\.02"):
        load_scheduler(generator)


def test_the_library_fails_with_a_transformer_that_takes_the_scale(tmp_path: Path) -> None:
    pipeline = library_pipeline(tiny_pipeline("qwen-image", tmp_path / "distilled", guidance_embeds=True))
    with pytest.raises(TypeError, match="takes from 3 to 4 positional arguments"):
        pipeline("a", guidance_scale=4.0, height=64, width=64, num_inference_steps=2)


def test_half_precision_gives_the_librarys_latents_too(plain: Twins) -> None:
    plain.check_half("bfloat16", 4.0)
