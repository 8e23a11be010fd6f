"""Counted work: the FLOPs of real architectures against figures known from elsewhere, memory against sums written out, no weights."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from featurize.cost.stage_cost import Stage, StageWork, _count, counted_work, stages
from featurize.encode.encoders import EncoderFiles, Preprocessing, find_encoder
from featurize.generate.generators import Generator, GeneratorPreset, find_generator, generator_settings
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import EMBEDDED_FOLDER

TERA, MEGA = 1e12, 1e6
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
def work_512(sd2: Path) -> dict[str, StageWork]:
    encoders = [_open_clip(name) for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14")]
    return counted_work(_generator(sd2, 512), encoders, dtype="float16")


@pytest.fixture(scope="module")
def work_xl(sdxl: Path) -> dict[str, StageWork]:
    return counted_work(_generator(sdxl, 1024), [], dtype="float16")


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
def test_stable_diffusion_2_at_512_px_costs_what_is_known(work_512: dict[str, StageWork], stage: str, tera_flops: float) -> None:
    assert work_512[stage].flops / TERA == pytest.approx(tera_flops, rel=0.005)


def test_at_768_px_the_unet_costs_what_is_known(sd2: Path) -> None:
    assert _count(stages(_generator(sd2, 768), [], dtype="float16")["denoise"]).flops / TERA == pytest.approx(2.149, rel=0.001)


def test_a_tiny_decoder_is_counted_in_the_place_of_the_generators_own(
    sd2: Path, sdxl: Path, tiny_decoder: Path, work_512: dict[str, StageWork]
) -> None:
    tiny = _count(stages(_generator(sd2, 512), [], dtype="float16", decoder_folder=tiny_decoder)["decode"])
    assert tiny.flops / TERA == pytest.approx(0.141, rel=0.005)
    assert tiny.activation_bytes < work_512["decode"].activation_bytes / 3
    assert stages(_generator(sdxl, 1024), [], dtype="float16", decoder_folder=tiny_decoder)["decode"].dtype == torch.float16


def test_weights_are_counted_with_every_parameter(work_512: dict[str, StageWork]) -> None:
    # The UNet of Stable Diffusion 2 has 865.9 million parameters, its autoencoder 83.7, the vision tower of ViT-L/14 304.0.
    parameters = {name: stage.weight_bytes / 2 / MEGA for name, stage in work_512.items()}
    assert parameters["denoise"] == pytest.approx(865.9, abs=0.1)
    assert parameters["decode"] == pytest.approx(83.7, abs=0.1)
    assert parameters["encode ViT-L-14"] == pytest.approx(304.0, abs=0.5)


def test_float32_takes_twice_the_memory_of_float16_and_the_same_flops(sd2: Path, work_512: dict[str, StageWork]) -> None:
    for name in ("prompt", "decode"):
        half, single = work_512[name], _count(stages(_generator(sd2, 512), [], dtype="float32")[name])
        assert single.flops == half.flops
        assert single.activation_bytes == pytest.approx(2 * half.activation_bytes, rel=0.01)
        assert single.weight_bytes == pytest.approx(2 * half.weight_bytes, rel=1e-5)


def test_decoding_keeps_what_its_widest_layer_keeps(work_512: dict[str, StageWork]) -> None:
    # 256 channels of 512 × 512 pixels: the residual, a convolution's input and result, and cuDNN's copies of those two, with room for
    # less than one more.
    image_bytes = 2 * 256 * 512**2
    assert 4 * image_bytes < work_512["decode"].activation_bytes < 5.5 * image_bytes


def test_stable_diffusion_xl_is_counted_with_both_text_encoders_and_its_conditions(work_xl: dict[str, StageWork]) -> None:
    prompt_flops = _transformer_flops(12, 77, 768) + _transformer_flops(32, 77, 1280)
    assert work_xl["prompt"].flops == pytest.approx(prompt_flops, rel=0.005)
    assert work_xl["denoise"].weight_bytes / 2 / MEGA == pytest.approx(2567.5, abs=1)
    # No figure from elsewhere: as first counted, so that it does not change unseen.
    assert work_xl["denoise"].flops / TERA == pytest.approx(6.76, rel=0.01)


def test_stable_diffusion_xl_decodes_in_float32_where_the_run_is_in_float16(sdxl: Path, work_xl: dict[str, StageWork]) -> None:
    assert work_xl["decode"] == _count(stages(_generator(sdxl, 1024), [], dtype="float32")["decode"])
    assert stages(_generator(sdxl, 1024), [], dtype="bfloat16")["decode"].dtype == torch.bfloat16


@pytest.fixture(scope="module")
def demo() -> tuple[Generator, list[EncoderFiles]]:
    return find_generator("demo", generator_settings("demo", {}), half=False), [find_encoder(name) for name in ("clip-demo", "vit-demo")]


def test_the_demo_costs_what_its_loaded_models_are_seen_to_compute(demo: tuple[Generator, list[EncoderFiles]]) -> None:
    generator, encoders = demo
    work = counted_work(generator, encoders, dtype="float32")
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
        assert work[name].flops == counter.get_total_flops(), name
    # The 16 patches go through one matrix before the layers.
    vit_flops = _transformer_flops(4, 17, 128) + 2 * (16 * 3 * 16**2) * 128
    assert work["encode vit-demo"].flops == pytest.approx(vit_flops, rel=0.005)


def test_the_demos_weights_are_those_of_its_files(demo: tuple[Generator, list[EncoderFiles]]) -> None:
    work = counted_work(*demo, dtype="float32")
    files = {"denoise": "generator/unet/diffusion_pytorch_model", "decode": "generator/vae/diffusion_pytorch_model"}
    for name, file in files.items():
        weights = load_file(EMBEDDED_FOLDER / f"{file}.safetensors")
        assert work[name].weight_bytes == sum(4 * tensor.numel() for tensor in weights.values())  # the files have them in float16


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
def test_a_vision_tower_of_transformers_costs_what_the_formula_says(
    tmp_path: Path, sd2: Path, config: Any, tokens: int, width: int
) -> None:
    config.save_pretrained(tmp_path)
    how = Preprocessing(size_px=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")
    common: dict[str, Any] = {"architecture": None, "weights_hash": "", "tokens": tokens, "width": width, "preprocessing": how}
    files = EncoderFiles(name="tower", family=config.model_type, folder=tmp_path, **common)
    counted = _count(stages(_generator(sd2, 64), [files], dtype="float32")["encode tower"])
    pixels = 3 * 224**2
    assert counted.flops == pytest.approx(_transformer_flops(12, tokens, width) + 2 * pixels * width, rel=0.005)
    assert counted.weight_bytes / 4 / MEGA == pytest.approx(86.5, abs=2)


def _stage(module: nn.Module, *shape: int, dtype: torch.dtype = torch.float32) -> Stage:
    return Stage(
        build=lambda: module.to("meta"),
        inputs=lambda rows: (torch.zeros(rows, *shape, dtype=dtype),),
        forward=lambda built, x: built(x),
        dtype=dtype,
    )


class _Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "tensors"),
    [
        (lambda x: x, 1),
        (lambda x: x + 1, 2),
        (lambda x: (x + 1) * 2, 3),
        (lambda x: ((x + 1) * 2) * 3, 3),  # the first result is gone when the third is made
        (lambda x: x.add_(1), 1),
        (lambda x: x.view(10, -1).t().contiguous(), 2),
        (lambda x: nn.functional.silu(x, inplace=True), 1),
        (lambda x: torch.cat([x, x]), 3),
        (lambda x: x.chunk(2, dim=1)[0].clone(), 1.5),
    ],
)
def test_memory_is_the_highest_sum_of_tensors_that_live_at_once(function: Callable[[torch.Tensor], object], tensors: float) -> None:
    assert _count(_stage(_Calls(function), 100)) == StageWork(flops=0, activation_bytes=int(tensors * 400), weight_bytes=0)


def test_a_linear_layer_keeps_its_input_and_result_beside_its_weights() -> None:
    counted = _count(_stage(nn.Linear(100, 50), 7, 100, dtype=torch.float16))
    assert counted == StageWork(flops=2 * 7 * 100 * 50, activation_bytes=2 * 7 * 150, weight_bytes=2 * 50 * 101)


def test_a_convolution_has_its_input_and_result_a_second_time() -> None:
    counted = _count(_stage(nn.Conv2d(3, 8, 3, padding=1, bias=False), 3, 16, 16))
    assert counted == StageWork(flops=2 * 27 * 8 * 256, activation_bytes=2 * 4 * 11 * 256, weight_bytes=4 * 27 * 8)


def test_weights_that_two_layers_share_count_once() -> None:
    layer = nn.Linear(10, 10, bias=False)
    assert _count(_stage(nn.Sequential(layer, layer), 10)).weight_bytes == 400


def test_attention_is_counted_by_its_formula_and_its_square_matrix_never_exists() -> None:
    def attend(x: torch.Tensor) -> torch.Tensor:
        query = x.view(1, 8, 4096, 16)
        out = nn.functional.scaled_dot_product_attention(query, query[:, :, :77], query[:, :, :77])
        return out.transpose(1, 2).reshape(1, 4096, 128)  # no copy: fused kernels write it in this order

    counted = _count(_stage(_Calls(attend), 8 * 4096 * 16))
    assert counted == StageWork(flops=4 * 8 * 4096 * 77 * 16, activation_bytes=2 * 4 * 8 * 4096 * 16, weight_bytes=0)


def test_the_attention_module_of_torch_is_counted_with_its_projections() -> None:
    attention = nn.MultiheadAttention(64, 4, batch_first=True)
    counted = _count(_stage(_Calls(lambda x: attention.to("meta").eval()(x, x, x, need_weights=False)), 50, 64))
    assert counted.flops == 2 * 50 * 4 * 64**2 + 4 * 50**2 * 64


def test_a_stage_runs_on_the_cpu_with_weights_that_are_finite_and_not_all_alike(demo: tuple[Generator, list[EncoderFiles]]) -> None:
    for name, stage in stages(*demo, dtype="float32").items():
        module = stage.module(torch.device("cpu"))
        assert all(float(parameter.std()) == pytest.approx(0.02, rel=0.3) for parameter in module.parameters() if parameter.numel() > 999)
        with torch.inference_mode():
            result = stage.forward(module, *stage.inputs(2))
        for leaf in torch.utils._pytree.tree_leaves(result):
            assert not isinstance(leaf, torch.Tensor) or (len(leaf) == 2 and bool(leaf.isfinite().all())), name


@pytest.mark.parametrize("broken", ["text_encoder/config.json", "unet/config.json", "vae/config.json"])
def test_a_folder_that_lacks_a_configuration_is_refused(tmp_path: Path, broken: str) -> None:
    folder = _folder(tmp_path, "StableDiffusionPipeline", SD2_UNET, [CLIP_L])
    (folder / broken).unlink()
    with pytest.raises(InputError, match=r"whose configurations make no model .*; expected a whole diffusers folder; download it again"):
        counted_work(_generator(folder, 64), [], dtype="float32")


def test_a_configuration_that_lacks_a_field_is_refused(tmp_path: Path) -> None:
    unet = {key: value for key, value in SD2_UNET.items() if key != "cross_attention_dim"}
    folder = _folder(tmp_path, "StableDiffusionPipeline", unet, [CLIP_L])
    with pytest.raises(InputError, match="cross_attention_dim"):
        counted_work(_generator(folder, 64), [], dtype="float32")


def test_a_generator_without_its_first_text_encoder_is_counted_with_the_second(tmp_path: Path, sdxl: Path) -> None:
    folder = _folder(tmp_path, "StableDiffusionXLPipeline", SDXL_UNET, [CLIP_L, OPENCLIP_G])
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": [None, None]}))
    counted = _count(stages(dataclasses.replace(_generator(folder, 64)), [], dtype="float32")["prompt"])
    assert counted.flops == pytest.approx(_transformer_flops(32, 77, 1280), rel=0.005)
