"""Every kind of image encoder of transformers, tiny and random: its folder gives what the library's own processor and model give.

Written out again here, beside the table of the source: which of the library's outputs the tokens are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from featurize.cost.stage_cost import encode_flops
from featurize.encode.encoders import find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.encode.transformers_models import KINDS
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute

LEVEL = 1.1 / 255
CPU = resolve_compute("cpu", "float32", half="float16")
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
VISION = {**BLOCKS, "image_size": 32, "patch_size": 8}
TEXT = {**BLOCKS, "num_hidden_layers": 1, "vocab_size": 32, "eos_token_id": 31}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
TINY_EFFICIENT = {"image_size": 64, "width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 256}
SQUARE_32, SQUARE_64 = {"height": 32, "width": 32}, {"height": 64, "width": 64}
VIT = ("ViTImageProcessor", {"size": SQUARE_32})
CLIP = ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 32})
BLIP = ("BlipImageProcessor", {"size": SQUARE_32})
SIGLIP = ("SiglipImageProcessor", {"size": SQUARE_32})
BIT = ("BitImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": 64})
CONVNEXT = ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}})
CROP_64 = {"size": {"shortest_edge": 72}, "crop_size": SQUARE_64}


@dataclass(frozen=True)
class Case:
    """A model, its processor, its tokens, and what they are: of the library's states, which come first and after which norm."""

    model: str
    config: dict[str, Any]
    processor: tuple[str, dict[str, Any]]
    tokens: int
    first: str = "class token"
    norm: str | None = None
    tower: str = ""
    prefix: int = 1


def _whole(kind: str = "vision", **more: Any) -> dict[str, Any]:
    """Return configuration and tower of a model of images and texts."""
    return {"config": {f"{kind}_config": VISION, "text_config": TEXT, "projection_dim": 16, **more}, "tower": f"{kind}_model"}


POST = "post_layernorm"
MEAN, POOLED = "mean of the patches", "attention-pooled"
CASES = {
    "ijepa": Case("IJepa", VISION, VIT, 17, MEAN),
    "siglip": Case("Siglip", processor=SIGLIP, tokens=17, first=POOLED, **_whole()),
    "siglip_vision_model": Case("SiglipVision", VISION, SIGLIP, 17, POOLED),
    "siglip without its pool": Case("SiglipVision", {**VISION, "vision_use_head": False}, SIGLIP, 17, MEAN),
    "aimv2": Case("Aimv2", processor=CLIP, tokens=17, first=POOLED, **_whole()),
    "aimv2_vision_model": Case("Aimv2Vision", {**VISION, "is_native": True}, CLIP, 17, POOLED),
    "aimv2 without its pool": Case("Aimv2Vision", {**VISION, "use_head": False}, CLIP, 17, MEAN),
    "metaclip_2": Case("MetaClip2", processor=CLIP, tokens=17, norm=POST, **_whole()),
    "metaclip_2_vision_model": Case("MetaClip2Vision", VISION, CLIP, 17, norm=POST),
    "altclip": Case("AltCLIP", processor=CLIP, tokens=17, norm=POST, **_whole()),
    "chinese_clip": Case("ChineseCLIP", processor=CLIP, tokens=17, norm=POST, **_whole()),
    "clipseg": Case("CLIPSeg", processor=VIT, tokens=17, norm=POST, **_whole()),
    "mlcd_vision_model": Case("MLCDVision", VISION, CLIP, 17, norm=POST),
    "owlvit": Case("OwlViT", processor=CLIP, tokens=17, norm=POST, **_whole()),
    "owlv2_vision_model": Case("Owlv2Vision", VISION, CLIP, 17, norm=f"vision_model.{POST}"),
    "git": Case("Git", {**TEXT, "vision_config": VISION}, CLIP, 17, tower="image_encoder"),
    "git_vision_model": Case("GitVision", VISION, CLIP, 17),
    "blip": Case("Blip", processor=BLIP, tokens=17, **_whole()),
    "blip_2_vision_model": Case("Blip2Vision", VISION, BLIP, 17),
    "instructblip_vision_model": Case("InstructBlipVision", VISION, BLIP, 17),
    "flava": Case("Flava", processor=VIT, tokens=17, **_whole("image", multimodal_config=BLOCKS, hidden_size=32)),
    "flava_image_model": Case("FlavaImage", VISION, VIT, 17),
    "align": Case(
        "Align",
        {"vision_config": TINY_EFFICIENT, "text_config": TEXT, "projection_dim": 16},
        ("EfficientNetImageProcessor", {"size": SQUARE_64, "include_top": False}),
        5,
        MEAN,
        tower="vision_model",
    ),
    "efficientnet": Case(
        "EfficientNet", TINY_EFFICIENT, ("EfficientNetImageProcessor", {"size": SQUARE_64, "rescale_offset": True}), 5, MEAN
    ),
    "tipsv2_vision_model": Case("Tipsv2Vision", VISION, VIT, 18, prefix=2),
    "sapiens2": Case("Sapiens2", VISION, VIT, 25, prefix=9),
    "pixio": Case("Pixio", VISION, ("BitImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 32}), 24, prefix=8),
    "radio": Case("Radio", {**BLOCKS, "patch_size": 8, "max_img_size": 64}, CLIP, 26, prefix=10),
    "internvl_vision": Case("InternVLVision", {**BLOCKS, "image_size": [32, 32], "patch_size": [8, 8]}, VIT, 17),
    "janus_vision_model": Case("JanusVision", VISION, VIT, 17, MEAN),
    "vitdet": Case("VitDet", {key: value for key, value in VISION.items() if key != "intermediate_size"}, VIT, 17, MEAN),
    "convnext": Case("ConvNext", STAGES, CONVNEXT, 5, MEAN, "layernorm"),
    "convnextv2": Case("ConvNextV2", STAGES, CONVNEXT, 5, MEAN, "layernorm"),
    "dinov3_convnext": Case("DINOv3ConvNext", STAGES, CONVNEXT, 5, "in the library's states"),
    "swin": Case("Swin", SWIN, VIT, 65, MEAN),
    "swinv2": Case("Swinv2", SWIN, VIT, 65, MEAN),
    "donut-swin": Case("DonutSwin", SWIN, VIT, 65, MEAN),
    "hiera": Case(
        "Hiera",
        {"embed_dim": 8, "image_size": [64, 64], "depths": [1] * 4, "num_heads": [1, 2, 4, 8], "masked_unit_size": [8, 8]},
        BIT,
        5,
        MEAN,
        "pooler.layernorm",
    ),
    "focalnet": Case(
        "FocalNet",
        {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "hidden_sizes": [8, 16], "focal_levels": [1, 1], "focal_windows": [3, 3]},
        BIT,
        65,
        MEAN,
    ),
    "levit": Case(
        "Levit",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1] * 3, "key_dim": [8] * 3},
        ("LevitImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": SQUARE_64}),
        2,
        MEAN,
    ),
    "pvt": Case("Pvt", {**STAGES, "image_size": 64, "num_attention_heads": [1] * 4}, ("PvtImageProcessor", {"size": SQUARE_64}), 5),
    "pvt_v2": Case("PvtV2", {**STAGES, "num_attention_heads": [1] * 4}, ("PvtImageProcessor", {"size": SQUARE_64}), 5, MEAN),
    "cvt": Case("Cvt", {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 4]}, CONVNEXT, 17),
    "bit": Case("Bit", {"embedding_size": 8, "hidden_sizes": [32] * 4, "depths": [1] * 4, "num_groups": 4}, BIT, 5, MEAN),
    "mobilenet_v1": Case("MobileNetV1", {"depth_multiplier": 0.25}, ("MobileNetV1ImageProcessor", CROP_64), 5, MEAN),
    "mobilenet_v2": Case("MobileNetV2", {"depth_multiplier": 0.25}, ("MobileNetV2ImageProcessor", CROP_64), 5, MEAN),
    "mobilevit": Case(
        "MobileViT",
        {"hidden_sizes": [16] * 3, "neck_hidden_sizes": [8] * 6 + [16], "num_attention_heads": 2},
        ("MobileViTImageProcessor", CROP_64),
        5,
        MEAN,
    ),
    "mobilevitv2": Case("MobileViTV2", {"width_multiplier": 0.25}, ("MobileViTImageProcessor", CROP_64), 5, MEAN),
    "poolformer": Case(
        "PoolFormer",
        {**STAGES},
        ("PoolFormerImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": SQUARE_64}),
        5,
        MEAN,
    ),
    "regnet": Case("RegNet", {**STAGES, "hidden_sizes": [8, 8, 16, 16], "embedding_size": 8, "groups_width": 8}, CONVNEXT, 5, MEAN),
    "resnet": Case("ResNet", {**STAGES, "embedding_size": 8}, CONVNEXT, 5, MEAN),
    "segformer": Case("Segformer", {**STAGES, "num_attention_heads": [1] * 4}, ("SegformerImageProcessor", {"size": SQUARE_64}), 5, MEAN),
    "swiftformer": Case(
        "SwiftFormer", {"embed_dims": [8, 8, 16, 16], "depths": [1] * 4}, ("ViTImageProcessor", {"size": SQUARE_64}), 5, MEAN
    ),
    "textnet": Case("TextNet", {}, ("TextNetImageProcessor", {"size": {"shortest_edge": 64}}), 5, MEAN),
}
# Their folders are in test_encoder_folders.py.
ELSEWHERE = {
    "vit",
    "vit_msn",
    "vit_mae",
    "beit",
    "data2vec-vision",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "clip_vision_model",
}


def _image() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def _tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).unsqueeze(0) / 255


def _saved(case: Case, folder: Path) -> Any:
    """Save the case's model with random weights; return it, in evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(hf, f"{case.model}Model")(getattr(hf, f"{case.model}Config")(**case.config)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    name, settings = case.processor
    getattr(hf, name)(**settings).save_pretrained(folder)
    return model


def _tokens_of(case: Case, model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return the tokens as docs/method.md says them, of the library's own output."""
    tower = model.get_submodule(case.tower)
    norm: Callable[[torch.Tensor], torch.Tensor] = tower.get_submodule(case.norm) if case.norm else torch.nn.Identity()
    with torch.inference_mode():
        output = tower(pixel_values=pixels)
        states = output.last_hidden_state
        states = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
        if case.model == "Cvt":
            return torch.cat([output.cls_token_value, states], dim=1)
        if case.first not in (MEAN, POOLED):
            return norm(states)
        if case.first == POOLED:
            return torch.cat([output.pooler_output[:, None], states], dim=1)
        return norm(torch.cat([states.mean(dim=1, keepdim=True), states], dim=1))


@pytest.mark.parametrize("name", CASES)
def test_a_folder_gives_what_the_library_gives(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    model = _saved(case, tmp_path / "model")
    files = find_encoder(str(tmp_path / "model"))
    expected_first = MEAN if case.model == "DINOv3ConvNext" else case.first
    assert (files.tokens, files.first_token, files.prefix) == (case.tokens, expected_first, case.prefix)
    assert encode_flops(files) > 0
    encoder = ImageEncoder(files, CPU)
    theirs = hf.AutoImageProcessor.from_pretrained(files.folder, backend="pil")(_image(), return_tensors="pt")["pixel_values"].float()
    step = LEVEL * files.preprocessing.scale / min(files.preprocessing.std)
    assert (encoder.pixels(_tensor(_image())) - theirs).abs().max() <= step
    with torch.inference_mode():
        tokens = encoder._tower(theirs)
    assert (tokens - _tokens_of(case, model, theirs)).abs().max() <= 1e-4 * max(1.0, float(tokens.abs().max()))


def test_every_kind_is_tried() -> None:
    assert {name for name, kind in KINDS.items() if not {name, kind.whole} & CASES.keys()} == ELSEWHERE


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "kind", "norm"),
    [
        ("siglip_vision_model", "SiglipVision", "post_layernorm"),
        ("metaclip_2_vision_model", "MetaClip2Vision", "post_layernorm"),
        ("ijepa", "IJepa", "layernorm"),
        ("aimv2_vision_model", "Aimv2Vision", "rms_norm"),
        ("sapiens2", "Sapiens2", "norm"),
    ],
)
def test_a_layer_is_the_librarys_hidden_state_with_the_final_norm(tmp_path: Path, name: str, kind: str, norm: str, layer: int) -> None:
    case = CASES[name]
    assert case.model == kind
    model = _saved(case, tmp_path / "model")
    whole, files = find_encoder(str(tmp_path / "model")), find_encoder(str(tmp_path / "model"), layer=layer)
    if layer == BLOCKS["num_hidden_layers"]:
        assert files == whole
        return
    assert (files.name, files.tokens) == (f"model-layer{layer}", whole.tokens)
    assert files.fingerprint() != whole.fingerprint()
    assert encode_flops(files) < encode_flops(whole)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        state = model.get_submodule(norm)(model(pixel_values=pixels, output_hidden_states=True).hidden_states[layer])
        found = ImageEncoder(files, CPU)._tower(pixels)
    added = found.shape[1] - state.shape[1]
    assert (found[:, added:] - state).abs().max() <= 1e-5
    if added:
        assert files.first_token == MEAN
        assert (found[:, 0] - state.mean(dim=1)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("ijepa", 4, "expected 1 to 3, its blocks; give one of these"),
        ("ijepa", 0, "expected 1 to 3, its blocks; give one of these"),
        ("swin", 1, "tokens are not those of one of several equal blocks"),
    ],
)
def test_a_layer_that_is_not_there_is_one_line(tmp_path: Path, name: str, layer: int, message: str) -> None:
    _saved(CASES[name], tmp_path / "model")
    with pytest.raises(InputError, match=message):
        find_encoder(str(tmp_path / "model"), layer=layer)


def test_a_layer_of_vitdet_is_the_librarys_hidden_state(tmp_path: Path) -> None:
    model = _saved(CASES["vitdet"], tmp_path / "model")
    files = find_encoder(str(tmp_path / "model"), layer=2)
    pixels = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states[2].flatten(2).transpose(1, 2)
        found = ImageEncoder(files, CPU)._tower(pixels)
    assert files.name == "model-layer2"
    assert torch.equal(found[:, 1:], states)


@pytest.mark.parametrize(
    ("name", "saved_as", "lacks"),
    [("mobilevit", "MobileViTForSemanticSegmentation", "conv_1x1_exp"), ("convnext", "ConvNextBackbone", "layernorm")],
)
def test_a_folder_without_the_models_last_layer_is_told_as_what_it_is(tmp_path: Path, name: str, saved_as: str, lacks: str) -> None:
    whole = _saved(CASES[name], tmp_path / "model")
    getattr(hf, saved_as)(whole.config).save_pretrained(tmp_path / "model")
    message = rf"model of a {saved_as}, which has no weights for {lacks}.*; expected all of \w+Model; give the folder of that model"
    with pytest.raises(InputError, match=message):
        ImageEncoder(find_encoder(str(tmp_path / "model")), CPU)


def test_positions_are_interpolated_as_the_library_does_or_refused(tmp_path: Path) -> None:
    model = _saved(CASES["siglip_vision_model"], tmp_path / "siglip")
    files = find_encoder(str(tmp_path / "siglip"), 64)
    assert (files.name, files.tokens) == ("siglip-64px", 65)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(pixel_values=pixels, interpolate_pos_encoding=True)
        found = ImageEncoder(files, CPU)._tower(pixels)
    assert (found[:, 1:] - expected.last_hidden_state).abs().max() <= 1e-5
    assert (found[:, 0] - expected.pooler_output).abs().max() <= 1e-5
    _saved(CASES["aimv2 without its pool"], tmp_path / "aimv2")
    with pytest.raises(InputError, match="whose library cannot resize its positions; expected its own 32 px"):
        find_encoder(str(tmp_path / "aimv2"), 64)


def test_the_manifest_says_what_the_first_token_is(tmp_path: Path) -> None:
    for name, recorded in (("sapiens2", {"prefix": 9}), ("ijepa", {"first_token": MEAN}), ("git_vision_model", {})):
        _saved(CASES[name], tmp_path / name)
        fingerprint = find_encoder(str(tmp_path / name)).fingerprint()
        assert {key: fingerprint[key] for key in ("prefix", "first_token") if key in fingerprint} == recorded
