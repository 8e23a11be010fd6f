"""Counted FLOPs: real architectures against published figures and written-out formulas, without weights."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from featurize.cost import stage_cost
from featurize.cost.stage_cost import decode_flops, denoising_flops, image_flops, stage_flops
from featurize.encode.encoders import EncoderFiles, find_encoder
from featurize.encode.preprocessing import Preprocessing
from featurize.generate.decoders import DecoderFiles
from featurize.generate.generators import Generator, GeneratorPreset, find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute

TERA = 1e12
SD2_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "layers_per_block": 2,
}
SDXL_UNET: dict[str, Any] = SD2_UNET | {
    "sample_size": 128,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
Text = tuple[str, int, int, int]  # class, width, layers, heads
OPENCLIP_H: Text = ("CLIPTextModel", 1024, 23, 16)
CLIP_L: Text = ("CLIPTextModel", 768, 12, 12)
OPENCLIP_G: Text = ("CLIPTextModelWithProjection", 1280, 32, 20)


def _folder(folder: Path, pipeline_class: str, unet: dict[str, Any], texts: Sequence[Text]) -> Path:
    """Write a diffusers folder that holds configurations and nothing else."""
    index: dict[str, Any] = {"_class_name": pipeline_class}
    for name, (text_class, width, layers, heads) in zip(("text_encoder", "text_encoder_2"), texts, strict=False):
        index[name] = ["transformers", text_class]
        shape = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
        transformers.CLIPTextConfig(num_hidden_layers=layers, num_attention_heads=heads, **shape).save_pretrained(folder / name)
    for name, config in (("unet", unet), ("vae", VAE)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _generator(folder: Path, size_px: int) -> Generator:
    return Generator(
        name="x",
        folder=folder,
        revision=None,
        weights_hash="",
        variant=None,
        pipeline_class=json.loads((folder / "model_index.json").read_text())["_class_name"],
        size_px=size_px,
        latent_shape=(4, size_px // 8, size_px // 8),
        settings=GeneratorPreset(),
    )


def _open_clip(architecture: str) -> EncoderFiles:
    how = Preprocessing(size_px=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic")
    common: dict[str, Any] = {"family": "open_clip", "folder": Path("none"), "weights_hash": "", "tokens": 50, "width": 768}
    return EncoderFiles(name=architecture, architecture=architecture, preprocessing=how, **common)


def _transformer_flops(layers: int, tokens: int, width: int) -> int:
    """Multiply-adds twice: 12 D² a token and layer in the matrices, 2 T D in the attention."""
    return layers * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("sd2"), "StableDiffusionPipeline", SD2_UNET, [OPENCLIP_H])


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("sdxl"), "StableDiffusionXLPipeline", SDXL_UNET, [CLIP_L, OPENCLIP_G])


@pytest.fixture(scope="module")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    return folder


@pytest.fixture(scope="module")
def flops_512(sd2: Path) -> dict[str, float]:
    encoders = [_open_clip(name) for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14")]
    return stage_flops(_generator(sd2, 512), encoders)


@pytest.mark.parametrize(
    ("stage", "tera_flops"),
    [
        ("denoise", 0.804),
        ("decode", 2.515),
        ("encode ViT-B-32", 0.0088),
        ("encode ViT-B-16", 0.0351),
        ("encode ViT-L-14", 0.162),
        ("prompt", _transformer_flops(23, 77, 1024) / TERA),
    ],
)
def test_stable_diffusion_2_at_512_px_costs_what_is_known(flops_512: dict[str, float], stage: str, tera_flops: float) -> None:
    assert flops_512[stage] / TERA == pytest.approx(tera_flops, rel=0.005)


def test_at_768_px_the_unet_costs_what_is_known(sd2: Path) -> None:
    assert stage_flops(_generator(sd2, 768), [])["denoise"] / TERA == pytest.approx(2.149, rel=0.001)


def test_a_tiny_decoder_is_counted_instead_of_the_generators_own(sd2: Path, tiny_decoder: Path) -> None:
    assert decode_flops(_generator(sd2, 512), decoder=_decoder(tiny_decoder, halves=False)) / TERA == pytest.approx(0.141, rel=0.005)


def test_at_half_the_side_a_quarter_of_the_decoders_work_is_left_out(sd2: Path) -> None:
    generator = _generator(sd2, 512)
    assert decode_flops(generator, decoder=_decoder(sd2 / "vae", halves=True)) / TERA == pytest.approx(1.862, rel=0.005)


def _decoder(folder: Path, *, halves: bool) -> DecoderFiles:
    return DecoderFiles(name="", folder=folder, revision=None, weights_hash="", license="", halves=halves)


def test_stable_diffusion_xl_is_counted_with_both_text_encoders(sdxl: Path) -> None:
    flops = stage_flops(_generator(sdxl, 1024), [])
    assert flops["prompt"] == pytest.approx(_transformer_flops(11, 77, 768) + _transformer_flops(32, 77, 1280), rel=0.005)
    # There is no published figure: this is our own first count, so that a change is noticed.
    assert flops["denoise"] / TERA == pytest.approx(6.76, rel=0.01)


@pytest.fixture(scope="module")
def demo() -> tuple[Generator, list[EncoderFiles]]:
    return find_generator("demo", generator_settings("demo", {}), half=False), [find_encoder(name) for name in ("clip-demo", "vit-demo")]


def test_the_demo_costs_what_its_loaded_models_compute(demo: tuple[Generator, list[EncoderFiles]]) -> None:
    generator, encoders = demo
    flops = stage_flops(generator, encoders)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        generator.folder, local_files_only=True, safety_checker=None, dtype=torch.float32
    )
    prompt_BTD = torch.zeros(1, 40, 160)
    latents_BChw = torch.zeros(1, *generator.latent_shape)
    forwards: dict[str, Callable[[], object]] = {
        "prompt": lambda: pipeline.text_encoder(torch.zeros(1, 40, dtype=torch.long)),
        "denoise": lambda: pipeline.unet(latents_BChw, 0, prompt_BTD),
        "decode": lambda: pipeline.vae.decode(latents_BChw),
    }
    for name, forward in forwards.items():
        # The counter does not know the CPU's fused attention; taken apart, it sees its two products.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            forward()
        assert flops[name] == counter.get_total_flops(), name
    # The 16 patches go through one matrix before the layers.
    vit_flops = _transformer_flops(4, 17, 128) + 2 * (16 * 3 * 16**2) * 128
    assert flops["encode vit-demo"] == pytest.approx(vit_flops, rel=0.005)


@pytest.mark.parametrize(
    ("config", "tokens", "width"),
    [
        (transformers.ViTConfig(), 197, 768),
        (transformers.CLIPVisionConfig(patch_size=32), 50, 768),
        (transformers.CLIPConfig(vision_config={"patch_size": 16}), 197, 768),
        (transformers.Dinov2Config(image_size=224, patch_size=14), 257, 768),
    ],
    ids=["ViT", "CLIP's vision tower", "CLIP", "DINOv2"],
)
def test_a_vision_tower_costs_what_the_formula_says(tmp_path: Path, sd2: Path, config: Any, tokens: int, width: int) -> None:
    config.save_pretrained(tmp_path)
    how = Preprocessing(size_px=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")
    common: dict[str, Any] = {"architecture": None, "weights_hash": "", "tokens": tokens, "width": width, "preprocessing": how}
    files = EncoderFiles(name="tower", family=config.model_type, folder=tmp_path, **common)
    flops = stage_flops(_generator(sd2, 64), [files])["encode tower"]
    assert flops == pytest.approx(_transformer_flops(12, tokens, width) + 2 * (3 * 224**2) * width, rel=0.005)


@pytest.mark.parametrize("broken", ["text_encoder/config.json", "unet/config.json", "vae/config.json"])
def test_a_folder_that_lacks_a_configuration_is_refused(tmp_path: Path, broken: str) -> None:
    folder = _folder(tmp_path, "StableDiffusionPipeline", SD2_UNET, [CLIP_L])
    (folder / broken).unlink()
    with pytest.raises(InputError, match=r"whose configurations define no model .*; expected a whole diffusers folder; restore its config"):
        stage_flops(_generator(folder, 64), [])


def test_a_configuration_that_lacks_a_field_is_refused(tmp_path: Path) -> None:
    unet = {key: value for key, value in SD2_UNET.items() if key != "cross_attention_dim"}
    folder = _folder(tmp_path, "StableDiffusionPipeline", unet, [CLIP_L])
    with pytest.raises(InputError, match="cross_attention_dim"):
        stage_flops(_generator(folder, 64), [])


def test_a_generator_without_its_first_text_encoder_is_counted(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "StableDiffusionXLPipeline", SDXL_UNET, [CLIP_L, OPENCLIP_G])
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": [None, None]}))
    assert stage_flops(_generator(folder, 64), [])["prompt"] == pytest.approx(_transformer_flops(32, 77, 1280), rel=0.005)


@pytest.mark.parametrize(("deepcache", "forwards"), [(1, 1), (3, 2)])
def test_each_kind_of_row_is_run_once(monkeypatch: pytest.MonkeyPatch, deepcache: int, forwards: int) -> None:
    generator = find_generator("demo", generator_settings("demo", {"deepcache": deepcache}), half=False)
    run, seen = stage_cost.first_prediction, list[Any]()
    monkeypatch.setattr(stage_cost, "first_prediction", lambda *given, **how: (seen.append(given), run(*given, **how))[1])
    flops = stage_flops(generator, ())
    assert len(seen) == forwards
    assert ("denoise, reusing" in flops) == (deepcache > 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_interval": "0.2:0.6", "deepcache": 2},
        {"deepcache": 3, "deepcache_cut": "layer", "guidance_interval": "0.3:0.7", "guidance_reuse": True},
    ],
)
def test_the_work_of_an_image_is_what_its_denoising_takes(settings: dict[str, Any]) -> None:
    generator = find_generator("demo", generator_settings("demo", {"steps": 10, **settings}), half=False)
    models = TextToImage(generator, resolve_compute("cpu", "float32", half="float16"))
    with models.text_encoder_on_device():
        embeddings = models.encode_prompts(["a"])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not count the CPU's fused attention
        models.denoise(embeddings, [0])
    flops = stage_flops(generator, ())
    assert denoising_flops(generator, flops) == counter.get_total_flops()
    assert image_flops(generator, flops) == flops["prompt"] + counter.get_total_flops() + flops["decode"]
