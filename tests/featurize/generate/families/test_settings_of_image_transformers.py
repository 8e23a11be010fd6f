"""What the configurations of image transformers change: decoders, shifts, sizes, samplers, numbers of steps."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.transformers import transformer_kandinsky

from featurize.generate.families import family_of
from featurize.generate.families.family import Family
from featurize.generate.generators import find_generator, generator_settings
from featurize.options import FeaturizeSettings
from featurize.plan.job import plan_job
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from tests.support.beside_library import SHORT, BesideLibrary
from tests.support.tiny_pipelines import tiny_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
_EXACT: Mapping[str, Any] = {"use_resolution_binning": False}
_PLAIN: Mapping[str, Any] = {**_EXACT, "clean_caption": False}


def _changed(folder: Path, copy: Path, file: str, **fields: Any) -> Path:
    """Return a copy of a folder with some fields of a configuration changed."""
    shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return copy


def _with_sampler(folder: Path, copy: Path, scheduler: Any) -> Path:
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "scheduler")
    scheduler.save_pretrained(copy / "scheduler")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", type(scheduler).__name__]}))
    return copy


def _is_bitwise(one: BesideLibrary, steps: int, guidance: float) -> bool:
    return one.ours([SHORT], [3], steps, guidance).is_bitwise(one.library([SHORT], [3], steps, guidance))


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_sana_sprint_takes_other_numbers_of_steps_without_an_intermediate_angle(tiny: Callable[[str], Path], steps: int) -> None:
    one = BesideLibrary(tiny("sana-sprint"), call={**_EXACT, "intermediate_timesteps": None})
    assert _is_bitwise(one, steps, 4.5)


def test_sana_sprint_reads_the_guidance_scale(tiny: Callable[[str], Path]) -> None:
    one = BesideLibrary(tiny("sana-sprint"), call=_EXACT)
    assert not torch.equal(one.ours([SHORT], [3], 2, 4.5).latents, one.ours([SHORT], [3], 2, 1.0).latents)
    assert _is_bitwise(one, 2, 1.0)


@pytest.mark.parametrize("name", ["sana-sprint", "Sana_Sprint_1.6B_1024px_diffusers"])
def test_a_folder_that_is_called_sprint_has_the_steps_of_its_pipeline(tiny: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny("sana-sprint"), tmp_path / name))
    settings = find_generator(str(folder), generator_settings(str(folder), {}), half=False).settings  # a warning would be an error
    assert (settings.steps, settings.guidance) == (2, 4.5)


def test_the_instruction_of_sana_is_in_the_manifests(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = str(tiny("sana"))
    corpus = Corpus.from_texts([f"text {number}" for number in range(16)], [0, 1] * 8)
    settings = FeaturizeSettings(steps=1, size_px=64)
    job = plan_job(corpus, tmp_path, generator=folder, encoders=("vit-demo", "prompt-text"), settings=settings, made_by={})
    for column in job.every_column:
        assert column.notes["complex_human_instruction"].startswith("Given a user prompt, generate an 'Enhanced prompt'")


def _family(folder: Path) -> Family:
    return family_of(folder, json.loads((folder / "model_index.json").read_text()))


def test_templates_are_noted_for_the_manifests(tiny: Callable[[str], Path]) -> None:
    notes = {name: _family(tiny(name)).notes for name in ("kandinsky5", "z-image", "prx")}
    template = diffusers.Kandinsky5T2IPipeline(*[None] * 7).prompt_template
    chat = "the tokenizer's own, with add_generation_prompt=True, enable_thinking=True"
    assert notes == {"kandinsky5": {"template": template}, "z-image": {"chat_template": chat}, "prx": {}}


class _Rounding:
    """The module ``torch`` with another bfloat16."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def test_rows_of_kandinsky_5_differ_in_a_batch_by_no_more_than_the_library_rounds(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # diffusers 0.42.1, Kandinsky5AttnProcessor: rotated queries and keys are rounded to bfloat16, in any dtype. Kernels sum in another
    # order for more rows; a sum whose last bit differs may be rounded to the next number of bfloat16, 1/256 away.
    one = BesideLibrary(tiny("kandinsky5"))
    models, seeds = one.loaded(8, 3.5), (5, 6, 7, 8)
    with models.text_encoder_on_device():
        embeddings = models.encode_prompts(("two dogs", "a very much longer text of ships & seas, " * 8, "", "<|im_start|>x"))

    def ours_apart() -> float:
        alone = [models.denoise(embeddings.rows([row]), [seed]) for row, seed in enumerate(seeds)]
        return _apart(models.denoise(embeddings, seeds), alone)

    one.pipeline.resolutions = [(64, 64)]
    noise = [torch.randn(models.generator.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    first = torch.stack(noise).permute(0, 2, 3, 1).unsqueeze(1)

    def library(latents: torch.Tensor) -> torch.Tensor:
        how = {"num_inference_steps": 8, "guidance_scale": 3.5, "height": 64, "width": 64, "output_type": "latent", "return_dict": False}
        drawn: torch.Tensor = one.pipeline(["two dogs"] * len(latents), latents=latents, **how)[0]
        return drawn

    def library_apart() -> float:
        return _apart(library(first), [library(row[None]) for row in first])

    assert 1e-5 < ours_apart() < 1e-3
    assert 1e-5 < library_apart() < 1e-3
    monkeypatch.setattr(transformer_kandinsky, "torch", _Rounding())
    assert ours_apart() <= 1e-5


def _apart(together: torch.Tensor, alone: Sequence[torch.Tensor]) -> float:
    return float((together - torch.cat(list(alone))).abs().max() / together.abs().max())


def test_prx_runs_with_a_deep_compression_decoder(tmp_path: Path) -> None:
    folder = tiny_pipeline("prx", tmp_path / "prx", in_channels=8)
    shutil.rmtree(folder / "vae")
    shutil.copytree(tiny_pipeline("sana", tmp_path / "sana") / "vae", folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderDC"]}))
    assert _is_bitwise(BesideLibrary(folder, call=_EXACT), 2, 5.0)


def test_a_folder_that_prxs_pipeline_saved_again_gives_the_same_images(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    one = BesideLibrary(tiny("prx"), call=_EXACT)
    one.pipeline.save_pretrained(tmp_path / "again")
    one.folder = tmp_path / "again"
    assert _is_bitwise(one, 2, 5.0)


@pytest.mark.parametrize("length", [None, 10**30])
def test_a_tokenizer_of_prx_that_knows_no_end_is_refused(tiny: Callable[[str], Path], tmp_path: Path, length: int | None) -> None:
    folder = _changed(tiny("prx"), tmp_path / "prx", "tokenizer/tokenizer_config.json", model_max_length=length)
    with pytest.raises(InputError, match="model_max_length"):
        family_of(folder, json.loads((folder / "model_index.json").read_text())).check()


@pytest.mark.parametrize("family", ["pixart-sigma", "pixart-alpha"])
def test_pixarts_published_folders_name_the_class_of_before(tiny: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    # PixArt-XL-2-1024-MS and PixArt-Sigma-XL-2-1024-MS say Transformer2DModel; diffusers 0.42.1 loads PixArtTransformer2DModel for it
    # (LegacyModelMixin.from_pretrained, by norm_type).
    older = {"caption_channels": 16, "double_self_attention": False, "num_vector_embeds": None, "only_cross_attention": False}
    folder = _changed(tiny(family), tmp_path / "old", "transformer/config.json", _class_name="Transformer2DModel", **older)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "transformer": ["diffusers", "Transformer2DModel"]}))
    assert _is_bitwise(BesideLibrary(folder, call=_PLAIN), 2, 4.5)


def test_a_transformer_of_before_that_is_not_pixarts_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _changed(tiny("pixart-sigma"), tmp_path / "dit", "transformer/config.json", norm_type="ada_norm_zero")
    with pytest.raises(InputError, match=r"with the norm_type 'ada_norm_zero'; expected ada_norm_single"):
        family_of(folder, json.loads((folder / "model_index.json").read_text())).check()


def test_a_presets_folder_that_is_whole_needs_no_denoiser_of_another_repository(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = str(_changed(tiny("pixart-sigma"), tmp_path / "whole", "transformer/config.json", sample_size=64))
    found = find_generator(f"pixart-sigma={folder}", generator_settings(f"pixart-sigma={folder}", {}), half=False)
    assert (found.size_px, found.denoiser_path) == (512, None)
    other = tiny("pixart-sigma")  # of another size
    with pytest.raises(InputError, match="no PixArt-alpha/PixArt-Sigma-XL-2-512-MS within reach"):
        find_generator(f"pixart-sigma={other}", generator_settings(f"pixart-sigma={other}", {}), half=False)


def test_the_licence_of_a_text_encoder_is_kept_beside_that_of_the_card(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("prx"), tmp_path / "prx"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    name = f"prx={folder}"
    found = find_generator(name, generator_settings(name, {"size_px": 64}), half=False)
    assert found.license == "apache-2.0 (its card); its text encoder T5Gemma: Gemma Terms of Use"


def test_pixart_alpha_of_1024_pixels_reads_the_size(tmp_path: Path) -> None:
    folder = tiny_pipeline(
        "pixart-alpha", tmp_path / "alpha", sample_size=128, use_additional_conditions=True, attention_head_dim=12, cross_attention_dim=24
    )
    assert _is_bitwise(BesideLibrary(folder, call=_PLAIN), 2, 4.5)


def test_one_step_of_pixart_alpha_gives_the_denoised_latents(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    sampler = diffusers.DDPMScheduler(timestep_spacing="trailing")
    one = BesideLibrary(_with_sampler(tiny("pixart-alpha"), tmp_path / "dmd", sampler), call=_PLAIN)
    assert _is_bitwise(one, 1, 1.0)


@pytest.mark.parametrize(
    ("kind", "spacing"),
    [
        ("EulerDiscreteScheduler", "trailing"),
        ("EulerAncestralDiscreteScheduler", "trailing"),
        ("DDPMScheduler", "trailing"),
        ("UniPCMultistepScheduler", "linspace"),
        ("HeunDiscreteScheduler", "linspace"),
    ],
)
def test_pixart_samples_with_the_folders_own_sampler(tiny: Callable[[str], Path], tmp_path: Path, kind: str, spacing: str) -> None:
    sampler = getattr(diffusers, kind)(timestep_spacing=spacing)
    one = BesideLibrary(_with_sampler(tiny("pixart-sigma"), tmp_path / "own", sampler), call=_PLAIN)
    assert _is_bitwise(one, 3, 4.5)


@pytest.mark.parametrize("patch", [1, 4])
def test_positions_of_hunyuan_dit_follow_the_size_of_its_patches(tmp_path: Path, patch: int) -> None:
    one = BesideLibrary(tiny_pipeline("hunyuan-dit", tmp_path / "hunyuan", patch_size=patch), call=_EXACT)
    assert _is_bitwise(one, 2, 4.0)


@pytest.mark.parametrize(("family", "change"), [("hunyuan-dit", {"learn_sigma": False}), ("flux-dev", {"patch_size": 2})])
def test_a_prediction_of_other_channels_fails_before_the_first_image(tmp_path: Path, family: str, change: Mapping[str, Any]) -> None:
    models = BesideLibrary(tiny_pipeline(family, tmp_path / family, **change)).loaded(2, 1.0)
    tried = models.try_parts()
    assert [next(tried), next(tried)] == ["text_encoder", "transformer"]
    with pytest.raises(RuntimeError, match="The size of tensor a"):
        next(tried)


@pytest.mark.parametrize("family", ["sd3", "z-image"])
def test_the_shift_follows_the_size_where_the_sampler_says_so(tiny: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    sampler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64)
    one = BesideLibrary(_with_sampler(tiny(family), tmp_path / "own", sampler))
    assert _is_bitwise(one, 3, 5.0)


def test_sana_samples_with_euler_steps_of_flow_matching(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    one = BesideLibrary(_with_sampler(tiny("sana"), tmp_path / "own", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)), call=_EXACT)
    assert _is_bitwise(one, 2, 4.5)


@pytest.mark.parametrize(("family", "most_px"), [("sd3", 384), ("auraflow", 128), ("kandinsky5", 2048), ("z-image", 1024)])
def test_a_side_that_has_no_positions_is_refused(tiny: Callable[[str], Path], family: str, most_px: int) -> None:
    name = str(tiny(family))
    assert find_generator(name, generator_settings(name, {"size_px": most_px}), half=False).size_px == most_px
    with pytest.raises(InputError, match=rf"got --size-px {most_px + 64} for .*, whose transformer has positions for {most_px} px;"):
        find_generator(name, generator_settings(name, {"size_px": most_px + 64}), half=False)


@pytest.mark.parametrize("family", ["prx", "sd3", "kandinsky5", "cogview4"])
def test_a_decoder_of_other_channels_is_refused(tiny: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    folder = _changed(tiny(family), tmp_path / family, "vae/config.json", latent_channels=5)
    with pytest.raises(InputError, match="vae decodes 5"):
        family_of(folder, json.loads((folder / "model_index.json").read_text())).check()


@pytest.mark.parametrize(("stated", "kept"), [(True, {"vae": torch.float32}), (False, {})])
def test_aura_flows_decoder_stays_out_of_float16_where_it_says_so(
    tiny: Callable[[str], Path], tmp_path: Path, stated: bool, kept: Mapping[str, torch.dtype]
) -> None:
    folder = _changed(tiny("auraflow"), tmp_path / "aura", "vae/config.json", force_upcast=stated)
    family = family_of(folder, json.loads((folder / "model_index.json").read_text()))
    assert family.dtypes(torch.float16) == kept
    assert not family.dtypes(torch.bfloat16)
