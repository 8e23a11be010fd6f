"""Generating and decoding, compared with the pipelines of diffusers; the same image for the same prompt in any batch."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.image_processor import VaeImageProcessor

from featurize.generate.families.family import PromptEmbeddings
from featurize.generate.families.unet import first_words
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.parts import load_parts
from featurize.generate.text_to_image import TextToImage
from featurize.plan.images import image_seed
from featurize.plan.prompt_reader import prompt_reader
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.runtime.pretrained import embedded_model

# diffusers' schedulers meet NumPy 2 with it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = [
    f"{thing} in the {place}" for place in ("sea", "old town of the north") for thing in ("a cat", "two", "snow", "1", "é", "a b", "—")
]
SEEDS = [image_seed(prompt, 0) for prompt in PROMPTS]
LONG = "word " * 200_000
CUT = "word " * 500
STRANGE = [
    LONG,
    "nul \0 inside",
    "שלום עולם مرحبا",
    "🐈‍⬛👩🏽‍🚀",
    "<br/><script>x</script> <|endoftext|> (a:1.3) [b]",
    "\ufeff x",
    "e\u0301\u0301",
]


@pytest.fixture(scope="module")
def compute() -> Compute:
    return resolve_compute("cpu", "float32", half="float16")


@pytest.fixture(scope="module")
def demo(compute: Compute) -> TextToImage:
    return _loaded("demo", compute)


def _generator(source: str = "demo", **overrides: Any) -> Generator:
    return find_generator(source, generator_settings(source, overrides), half=False)


def _loaded(source: str, compute: Compute, **overrides: Any) -> TextToImage:
    return TextToImage(_generator(source, **overrides), compute, attention="auto")


def _generate(model: TextToImage, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
    with model.text_encoder_on_device():
        embeddings = model.encode_prompts(prompts)
    return model.denoise(embeddings, seeds)


def _noise(seeds: list[int], shape: tuple[int, ...] = (8, 8, 8)) -> torch.Tensor:
    return torch.stack([torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds])


def _images(model: TextToImage, batch: int) -> torch.Tensor:
    blocks = [slice(start, start + batch) for start in range(0, len(PROMPTS), batch)]
    return torch.cat([model.decode(_generate(model, PROMPTS[block], SEEDS[block])) for block in blocks])


def test_a_row_is_the_same_image_in_any_batch(demo: TextToImage) -> None:
    images = {batch: _images(demo, batch) for batch in (1, 4, 14)}
    assert images[1].shape == (14, 3, 64, 64)
    assert (images[1] - images[4]).abs().max() <= 1e-4
    assert (images[1] - images[14]).abs().max() <= 1e-4
    assert (images[1][0] - images[1][1]).abs().max() > 0.05  # the rows do differ, so the bounds say something


def test_the_picture_depends_on_the_prompt_and_on_the_seed(demo: TextToImage) -> None:
    same, other_prompt, other_seed = _generate(demo, ["cat", "a dog on a hill", "cat"], [1, 1, 2])
    assert (same - other_prompt).abs().max() > 1e-3
    assert (same - other_seed).abs().max() > 0.1


def test_a_batch_whose_neighbours_change_keeps_the_row(demo: TextToImage) -> None:
    one, other = _generate(demo, ["cat", "dog"], [1, 2]), _generate(demo, ["cat", LONG], [1, 3])
    assert (one[0] - other[0]).abs().max() <= 1e-4


def _pipeline_says(model: TextToImage, prompts: list[str], seeds: list[int], **how: Any) -> torch.Tensor:
    pipeline_class = getattr(diffusers, model.generator.pipeline_class)
    by_hand = pipeline_class.from_pretrained(model.generator.folder, **how)
    by_hand.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        generated = by_hand(
            prompt=prompts,
            latents=_noise(seeds, model.generator.latent_shape),
            num_inference_steps=model.generator.settings.steps,
            guidance_scale=model.generator.settings.guidance,
            output_type="latent",
        )
    latents: torch.Tensor = generated.images
    return latents


def test_draw_is_what_the_pipeline_gives_for_the_same_noise(demo: TextToImage) -> None:
    prompts = ["a cat", CUT, "x " * 76, "y" * 300]
    expected = _pipeline_says(demo, prompts, [3, 4, 5, 6], safety_checker=None, dtype=torch.float32)
    assert (_generate(demo, prompts, [3, 4, 5, 6]) - expected).abs().max() <= 1e-5


def test_decode_is_the_pipelines_own_decoding_and_postprocessing(demo: TextToImage) -> None:
    vae = demo.parts.vae
    latents = _generate(demo, PROMPTS[:3], SEEDS[:3])
    with torch.inference_mode():
        decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    expected = VaeImageProcessor().postprocess(decoded, output_type="pt")
    images = demo.decode(latents)
    assert images.dtype == torch.float32
    assert (images - expected).abs().max() <= 1e-6
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_overflowing_decoder_gives_nan_not_black_or_white(demo: TextToImage, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    def overflowing(latents: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        images = torch.zeros(len(latents), 3, 64, 64)
        images[1, 2, 3, 4] = value
        return (images,)

    monkeypatch.setattr(demo.parts.vae, "decode", overflowing)
    images = demo.decode(torch.zeros(3, 8, 8, 8))
    assert images[1, 2, 3, 4].isnan()
    assert images.isnan().sum() == 1
    assert (images[0] == 0.5).all()


def test_latents_that_are_not_finite_give_images_that_are_not(demo: TextToImage) -> None:
    latents = _generate(demo, PROMPTS[:2], SEEDS[:2]).clone()
    latents[0] = torch.nan
    images = demo.decode(latents)
    assert images[0].isnan().all()
    assert images[1].isfinite().all()


def _are_cut(generator: Generator, prompts: Sequence[str]) -> list[bool]:
    reads = prompt_reader(generator)
    return [tokens > reads.tokens_read for tokens in reads.tokens_of(prompts)]


def test_a_prompt_of_40_tokens_is_whole_and_one_of_41_is_cut(demo: TextToImage) -> None:
    tokenizer = demo.parts.tokenizers["tokenizer"]
    whole, cut = "the " * 38, "the " * 39
    assert [len(tokenizer(prompt)["input_ids"]) for prompt in (whole, cut)] == [40, 41]
    assert tokenizer.model_max_length == 40
    assert _are_cut(demo.generator, [whole, cut, "a", LONG, whole]) == [False, True, False, True, False]


def test_cut_prompts_are_found_in_a_large_corpus(demo: TextToImage) -> None:
    cut = _are_cut(demo.generator, ["a"] * 1030 + ["x" * 76])
    assert (len(cut), sum(cut), cut[-1]) == (1031, 1, True)


def test_any_text_is_drawn(demo: TextToImage) -> None:
    latents = _generate(demo, STRANGE, list(range(len(STRANGE))))
    assert latents.shape == (len(STRANGE), 8, 8, 8)
    assert latents.isfinite().all()
    assert _are_cut(demo.generator, STRANGE)[:2] == [True, False]


@pytest.mark.parametrize(
    "prompt", ["a", "  a  b\n", "a\x1cb " * 90, " \u2003x\u00a0y\u3000z " * 40, "word " * 500, "!? " * 100, "\x85a" * 99]
)
def test_the_words_kept_have_the_tokens_the_encoder_reads(demo: TextToImage, prompt: str) -> None:
    tokenizer = demo.parts.tokenizers["tokenizer"]
    kept = first_words(prompt, 40)
    assert prompt.startswith(kept)
    assert tokenizer(kept, truncation=True)["input_ids"] == tokenizer(prompt, truncation=True)["input_ids"]


def test_the_tokenizer_is_spared_what_it_would_cut_off(demo: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    kind = type(demo.parts.tokenizers["tokenizer"])
    whole = kind.__call__

    def watched(self: Any, prompts: list[str], **how: Any) -> Any:
        seen.extend(prompts)
        return whole(self, prompts, **how)

    monkeypatch.setattr(kind, "__call__", watched)
    _generate(demo, [LONG, "short one"], [1, 2])
    assert [prompt for prompt in seen if prompt] == [" ".join(["word"] * 40), "short one"]


@contextmanager
def _unet_rows(model: TextToImage) -> Iterator[list[int]]:
    rows: list[int] = []
    handle = model.parts.denoiser.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    yield rows
    handle.remove()


@pytest.mark.parametrize(("guidance", "passes"), [(0.0, 1), (1.0, 1), (1.01, 2), (3.0, 2)])
def test_the_unet_reads_each_row_twice_with_guidance_only(compute: Compute, guidance: float, passes: int) -> None:
    model = _loaded("demo", compute, guidance=guidance, steps=3)
    with _unet_rows(model) as rows:
        _generate(model, PROMPTS[:5], SEEDS[:5])
    assert rows == [5 * passes] * 3
    assert sum(rows) == 5 * 3 * passes


def test_an_exception_before_a_step_ends_the_generation(demo: TextToImage) -> None:
    asked: list[int] = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    with demo.text_encoder_on_device():
        embeddings = demo.encode_prompts(["a"])
    with _unet_rows(demo) as rows, pytest.raises(KeyboardInterrupt):
        demo.denoise(embeddings, [1], before_step=stop)
    assert rows == [2, 2]
    asked.clear()
    demo.denoise(embeddings.rows([0, 0]), [1, 2], before_step=lambda: asked.append(1))
    assert len(asked) == demo.generator.settings.steps


@pytest.mark.parametrize(("guidance", "empty"), [(3.0, 1), (1.0, 0)])
def test_the_empty_prompt_is_encoded_once(compute: Compute, guidance: float, empty: int) -> None:
    model, read = _loaded("demo", compute, guidance=guidance), []
    model.parts.text_encoders["text_encoder"].register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    for prompts in (["a", "b", "c"], ["d"]):
        with model.text_encoder_on_device():
            assert model.encode_prompts(prompts)["tokens"].shape == (len(prompts), 40, 160)
    assert sum(read) == 4 + empty


def test_embeddings_are_joined_and_chosen_by_row() -> None:
    parts = [PromptEmbeddings({"tokens": torch.rand(n, 3, 2), "pooled": torch.rand(n, 5)}) for n in (1, 2)]
    joined = PromptEmbeddings.joined(parts)
    chosen = joined.rows([2, 0, 2])
    assert torch.equal(chosen["tokens"], torch.stack([parts[1]["tokens"][1], parts[0]["tokens"][0], parts[1]["tokens"][1]]))
    assert torch.equal(chosen["pooled"], joined["pooled"][[2, 0, 2]])
    assert (len(joined), len(chosen), "mask" in joined) == (3, 3, False)


def test_a_half_precision_generator_in_float32_equals_a_float32_one(compute: Compute) -> None:
    half = TextToImage(_generator(), dataclasses.replace(compute, dtype="bfloat16"))
    parts = [half.parts.denoiser, half.parts.vae, half.parts.text_encoders["text_encoder"]]
    weights = [[one.clone() for one in part.state_dict().values()] for part in parts]
    before = _generate(half, PROMPTS[:2], SEEDS[:2])
    assert before.dtype == torch.bfloat16
    with half.in_float32():
        generated = _generate(half, PROMPTS[:2], SEEDS[:2])
        assert half.decode(generated).isfinite().all()
    assert generated.dtype == torch.float32
    assert (generated - before).abs().max() > 1e-4  # bfloat16 rounds, so this was computed in another way
    assert all(one.dtype == torch.bfloat16 for part in parts for one in part.parameters())
    for part, own in zip(parts, weights, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(part.state_dict().values(), own, strict=True))
    assert torch.equal(_generate(half, PROMPTS[:2], SEEDS[:2]), before)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("ddim", diffusers.DDIMScheduler),
        ("dpm++", diffusers.DPMSolverMultistepScheduler),
        ("euler", diffusers.EulerDiscreteScheduler),
        ("own", diffusers.PNDMScheduler),
    ],
)
def test_the_scheduler_is_the_one_that_is_asked_for(tmp_path: Path, compute: Compute, scheduler: str, expected: type) -> None:
    folder = Path(shutil.copytree(embedded_model("generator"), tmp_path / "sd"))
    # As in the folders of Stable Diffusion 1: PNDM, whose configuration need not speak of clipping.
    own = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "PNDMScheduler", **own}))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "PNDMScheduler"]}))
    model = _loaded(f"demo={folder}", compute, scheduler=scheduler, steps=2)
    found = model.parts.scheduler
    assert type(found) is expected
    assert {name: found.config[name] for name in own if name != "skip_prk_steps" or scheduler == "own"}.items() <= own.items()
    assert not found.config.get("clip_sample")
    assert _generate(model, ["a"], [1]).isfinite().all()


@pytest.mark.parametrize(
    ("path", "content"),
    [("unet/diffusion_pytorch_model.safetensors", b"not weights"), ("unet/config.json", b"{"), ("scheduler/scheduler_config.json", None)],
)
def test_a_folder_that_does_not_load_is_one_line(tmp_path: Path, compute: Compute, path: str, content: bytes | None) -> None:
    folder = Path(shutil.copytree(embedded_model("generator"), tmp_path / "sd"))
    generator = _generator(f"demo={folder}")
    (folder / path).unlink() if content is None else (folder / path).write_bytes(content)
    part = folder / Path(path).parent
    message = rf"got ({re.escape(str(part))}, which does not load .*; restore its files|no scheduler_config.json in {re.escape(str(part))})"
    with pytest.raises(InputError, match=message):
        TextToImage(generator, compute, attention="auto")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion XL folder of the demo's size, its latents normalised by channel as some SDXL decoders have it."""
    folder = tmp_path_factory.mktemp("models") / "sdxl"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(embedded_model("generator") / "tokenizer")
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        latents_mean=(0.1, 0.2, 0.3, 0.4),
        latents_std=(2.0, 3.0, 4.0, 5.0),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diffusers.StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=transformers.CLIPTextModel(text),
            text_encoder_2=transformers.CLIPTextModelWithProjection(text),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet,
            scheduler=diffusers.EulerDiscreteScheduler(),
        ).save_pretrained(folder)
    return folder


def test_stable_diffusion_xl_runs_through_the_same_code(sdxl: Path, compute: Compute) -> None:
    model = _loaded(str(sdxl), compute, steps=2, guidance=5.0)
    assert model.generator.pipeline_class == "StableDiffusionXLPipeline"
    latents = _generate(model, ["a cat", CUT], [3, 4])
    assert (latents - _pipeline_says(model, ["a cat", CUT], [3, 4])).abs().max() <= 1e-5
    vae = model.parts.vae
    with torch.inference_mode():
        mean, std = (torch.tensor(vae.config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
        decoded = vae.decode(latents * std / vae.config.scaling_factor + mean, return_dict=False)[0]
    assert (model.decode(latents) - VaeImageProcessor().postprocess(decoded, output_type="pt")).abs().max() <= 1e-6
    assert _are_cut(model.generator, ["a cat", CUT]) == [False, True]


def test_only_stable_diffusion_xls_decoder_stays_in_float32(sdxl: Path) -> None:
    folders = {"sdxl": sdxl, "sd": embedded_model("generator")}
    cpu = torch.device("cpu")
    loaded = {name: load_parts(_generator(str(folder)), torch.float16, None, cpu) for name, folder in folders.items()}
    assert {name: (one.denoiser.dtype, one.vae.dtype) for name, one in loaded.items()} == {
        "sdxl": (torch.float16, torch.float32),
        "sd": (torch.float16, torch.float16),
    }
    assert all(one.vae.config.force_upcast for one in loaded.values())


def test_healing_takes_the_memory_of_the_largest_part_and_no_more(compute: Compute) -> None:
    half, full = TextToImage(_generator(), dataclasses.replace(compute, dtype="bfloat16")), TextToImage(_generator(), compute)
    weights = {
        name: sum(weight.numel() for weight in part.parameters())
        for name, part in (("unet", half.parts.denoiser), ("vae", half.parts.vae), ("text", half.parts.text_encoders["text_encoder"]))
    }
    # The text encoder is not on the device before; of the others there are two bytes a weight already.
    assert half.float32_bytes(generates=True) == max(2 * weights["unet"], 2 * weights["vae"], 4 * weights["text"])
    assert half.float32_bytes(generates=False) == 2 * weights["vae"]
    assert full.float32_bytes(generates=True) == 0


def test_in_float32_one_part_at_a_time_is_converted(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    half = TextToImage(_generator(steps=1), dataclasses.replace(compute, dtype="bfloat16"))
    parts = {"unet": half.parts.denoiser, "vae": half.parts.vae, "text": half.parts.text_encoders["text_encoder"]}
    seen: list[dict[str, torch.dtype]] = []

    def note(*_: Any) -> None:
        seen.append({name: next(part.parameters()).dtype for name, part in parts.items()})

    handles = [parts[name].register_forward_pre_hook(note) for name in ("unet", "text")]
    handles.append(parts["vae"].decoder.register_forward_pre_hook(note))
    with half.in_float32():
        half.decode(_generate(half, ["a"], [1]))
    for handle in handles:
        handle.remove()
    converted = [[name for name, dtype in dtypes.items() if dtype == torch.float32] for dtypes in seen]
    assert converted == [["text"], ["text"], ["unet"], ["vae"]]  # the empty prompt and the prompt
